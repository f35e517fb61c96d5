//! The end-to-end harness: the product as it is shipped, on a real engine, with `internet` in the place of the world outside.

pub mod ca;
