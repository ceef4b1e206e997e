//! The arithmetic of the CPU as one table of routines, chosen once.
