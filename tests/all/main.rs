//! Tests of the whole, a module per theme. What every test may use is in `support`.

mod architecture;
mod bad_input;
mod bridge_path;
mod command_line;
mod hub;
mod parity;
mod resume;
mod stages;
mod support;
mod tensors;
mod timm;
