//! The threads of a model, their barrier and the buffers they share.
