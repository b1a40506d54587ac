"""The `cbt` strategy: from a VM on a pool to a restore point in the store."""
