//! What the tests share: the float64 reference, the comparers, small models and folders.
