//! The run drawn as one HTML page.
