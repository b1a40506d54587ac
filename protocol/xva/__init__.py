"""XVA, the servers' archive of a whole VM: a tar with `ova.xml` first, then the disks in blocks of 1 MiB.

Sources: xen-api ocaml/xapi/export.ml, import.ml, stream_vdi.ml, importexport.ml; mirage/ocaml-tar lib/tar.ml.
"""
