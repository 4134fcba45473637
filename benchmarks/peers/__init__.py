"""Engines that run the same network, each in a process of its own, and the driver that makes them take turns."""
