//! Students: state-space models whose forward also returns what the bridges read.

pub mod vim;
