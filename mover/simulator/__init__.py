"""A pool on this machine, with the manners of the real servers: docs/fidelity.md says which, and how well.

It shares with the client only code that reads and writes formats, and the NBD server.
"""

from mover.simulator.options import XCP_NG_8_2, XCP_NG_8_3, XENSERVER_7_1, XENSERVER_7_6, Options, Release
from mover.simulator.simulator import Simulator

__all__ = ["XCP_NG_8_2", "XCP_NG_8_3", "XENSERVER_7_1", "XENSERVER_7_6", "Options", "Release", "Simulator"]
