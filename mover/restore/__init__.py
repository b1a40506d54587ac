"""From a restore point to files, or to a VM on a pool."""
