"""The sweep: methods x recipes x backends x shapes, each measured once, in a run folder that any kill leaves whole."""
