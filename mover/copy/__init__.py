"""Restore points from one store into another: the second copy that every backup needs."""
