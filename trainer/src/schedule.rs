//! Learning-rate curves as pure functions of the step.
