//! Where a stage computes, as a name; which devices there are is the stage's to find out.

use std::str::FromStr;

/// A device by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceName {
    /// The processor.
    Cpu,
    /// A CUDA device by its index.
    Cuda(usize),
}

impl FromStr for DeviceName {
    type Err = String;

    /// Reads `cpu`, `cuda` (the first), `cuda:N`.
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = name.strip_prefix("cuda:").and_then(|index| index.parse().ok());
                index.map(Self::Cuda).ok_or_else(|| "give cpu, cuda or cuda:N".to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_others_refused() {
        assert_eq!("cpu".parse(), Ok(DeviceName::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceName::Cuda(3)));
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:x"] {
            assert!(name.parse::<DeviceName>().is_err(), "{name}");
        }
    }
}
