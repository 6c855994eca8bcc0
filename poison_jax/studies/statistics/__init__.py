"""Statistics of a study: arrays in, estimates with intervals out.

The unit is the run, the seed is the unit of replication, a dose is a number
of poisoned documents. Pure numpy and scipy: nothing here knows of runs,
configs or files.
"""
