"""Views of the one stream of events that a run emits. They read events and drive nothing."""
