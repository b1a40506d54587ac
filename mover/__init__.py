"""Agentless backup and restore of XCP-ng / XenServer virtual machines into a deduplicating store."""

__version__ = "0.1.0"
