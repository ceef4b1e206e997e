//! Where a run's random numbers come from.
