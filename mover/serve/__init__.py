"""The disks of a restore point over NBD, without restoring them."""
