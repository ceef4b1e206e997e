//! How each family of models names and stores the layout's parameters on disk.
