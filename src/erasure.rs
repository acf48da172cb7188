//! Layouts k+m and the Reed-Solomon codec.
