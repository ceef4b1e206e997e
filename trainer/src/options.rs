//! What a run is told: preset, file and flags.
