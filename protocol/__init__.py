"""What is said on a wire or in somebody else's file: NBD, CBT bitmaps, VHD, XAPI and its HTTP handlers.

No policy and no store live here, and nothing here knows of jobs. Nothing here imports `mover`.
"""
