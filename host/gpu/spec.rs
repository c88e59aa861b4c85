//! Which device to open, and with which driver.

use std::fmt;
use std::str::FromStr;

use cust::Driver;

use crate::error::{Error, Result};

/// The environment variable that says which device [`DeviceSpec::Auto`] means.
const VARIABLE: &str = "FP8_MOE_DEVICE";

/// Which device to open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceSpec {
    /// What the environment variable `FP8_MOE_DEVICE` says (`sim`, `cuda`, `cuda:N`), else the first GPU that
    /// can run the kernels; an error when there is none. It is never the emulated device unless the variable
    /// asks for it.
    #[default]
    Auto,
    /// The GPU with this ordinal; an error when there is no driver or no such GPU.
    Cuda(u32),
    /// The emulated device; an error when the library was built without its feature `sim`.
    Sim,
}

impl FromStr for DeviceSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<DeviceSpec> {
        let ordinal = text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
        match (text, ordinal) {
            ("auto", _) => Ok(DeviceSpec::Auto),
            ("sim", _) => Ok(DeviceSpec::Sim),
            ("cuda", _) => Ok(DeviceSpec::Cuda(0)),
            (_, Some(ordinal)) => Ok(DeviceSpec::Cuda(ordinal)),
            _ => Err(Error::Device { spec: text.into(), reason: "must be auto, sim or cuda:N".into() }),
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Auto => write!(f, "auto"),
            DeviceSpec::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            DeviceSpec::Sim => write!(f, "sim"),
        }
    }
}

/// A driver, and which of its devices is meant.
pub(super) struct Choice {
    pub driver: Driver,
    /// None: the first that can run the kernels.
    pub ordinal: Option<u32>,
    /// Why this driver, in a few words.
    pub reason: String,
}

/// How to get the emulated device, for those who have no GPU.
const HINT: &str = if cfg!(feature = "sim") {
    "the emulated device is there as `sim` (DeviceSpec::Sim, FP8_MOE_DEVICE=sim)"
} else {
    "the feature `sim` of fp8-moe has an emulated device, for DeviceSpec::Sim or FP8_MOE_DEVICE=sim"
};

impl DeviceSpec {
    /// The error of a device that cannot be had. Who left the choice to the library is told of the emulated
    /// device.
    pub(super) fn refuse(self, mut reason: String) -> Error {
        if self == DeviceSpec::Auto {
            reason = format!("{reason}; {HINT}");
        }
        Error::Device { spec: self.to_string(), reason }
    }

    /// Chooses the driver, and loads it.
    pub(super) fn choose(self) -> Result<Choice> {
        let refuse = |reason: String| self.refuse(reason);
        let cuda = |ordinal, reason: &str| {
            let driver = Driver::cuda().map_err(|error| refuse(error.to_string()))?;
            Ok(Choice { driver, ordinal, reason: reason.into() })
        };
        match self {
            DeviceSpec::Cuda(ordinal) => cuda(Some(ordinal), "the program asked for it"),
            DeviceSpec::Sim => sim("the program asked for it").map_err(refuse),
            DeviceSpec::Auto => match std::env::var(VARIABLE).as_deref() {
                Ok("" | "auto") | Err(std::env::VarError::NotPresent) => cuda(None, "there is one"),
                Ok(text) => {
                    let spec = text.parse::<DeviceSpec>().map_err(|_| {
                        refuse(format!("{VARIABLE}={text}: must be auto, cuda, cuda:N or sim"))
                    })?;
                    Ok(Choice { reason: format!("{VARIABLE} asked for {text}"), ..spec.choose()? })
                }
                Err(error) => Err(refuse(format!("{VARIABLE}: {error}"))),
            },
        }
    }
}

/// The emulated device.
#[cfg(feature = "sim")]
fn sim(reason: &str) -> Result<Choice, String> {
    let driver = Driver::sim().map_err(|error| error.to_string())?;
    Ok(Choice { driver, ordinal: Some(0), reason: reason.into() })
}

/// There is no emulated device in this program.
#[cfg(not(feature = "sim"))]
fn sim(_reason: &str) -> Result<Choice, String> {
    Err("this program was built without the feature `sim` of fp8-moe, which has the emulated device".into())
}
