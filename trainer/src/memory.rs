//! What a run will need, before step 0.
