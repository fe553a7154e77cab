//! NVIDIA's driver, asked without being linked to: a program that needs no GPU starts where there is none.
//!
//! Names and numbers are those of CUDA's driver API.

use std::ffi::{CStr, c_char, c_int, c_void};

use libloading::Library;
use serde::{Deserialize, Serialize};

/// The library, by the name that every driver installs it under.
const LIBRARY: &str = "libcuda.so.1";
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const CAPABILITY: [c_int; 2] = [75, 76];
/// `CU_MEMPOOL_ATTR_USED_MEM_HIGH`.
const MOST_USED: c_int = 8;

/// A GPU as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Such as `NVIDIA H200`.
    pub name: String,
    /// Such as 90: compute capability 9.0.
    pub capability: u32,
    /// Bytes of memory in all.
    pub memory_bytes: u64,
    /// The newest CUDA that the driver knows, such as 13.0.
    pub driver: CudaVersion,
}

/// How precise the numbers are that a GPU multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Products {
    /// 32 bits.
    F32,
    /// bfloat16, summed in 32 bits.
    Bf16,
}

/// Operations a second that makers state, in units of 1e12, without sparsity: of 32 bits, and of bfloat16 with 32-bit sums.
const PEAKS: [(&str, f64, f64); 8] = [
    ("B200", 80.0, 2250.0),
    ("H200", 67.0, 989.0),
    ("H100 PCIe", 51.0, 756.0),
    ("H100", 67.0, 989.0),
    ("A100", 19.5, 312.0),
    ("L40S", 91.6, 362.0),
    ("L4", 30.3, 121.0),
    ("RTX 4090", 82.6, 165.2),
];

impl Gpu {
    /// Returns the operations a second that the maker states, where that is known here.
    pub fn peak_flops(&self, products: Products) -> Option<f64> {
        let is_it = |(name, ..): &&(&str, f64, f64)| self.name.contains(name);
        let (_, wide, narrow) = PEAKS.iter().find(is_it)?;
        let peak = match products {
            Products::F32 => wide,
            Products::Bf16 => narrow,
        };
        Some(peak * 1e12)
    }
}

/// A version of CUDA: 1000 for each major one, 10 for each minor one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CudaVersion(pub u32);

impl std::fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// Why no GPU can be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// There is no driver.
    #[error("there is no NVIDIA driver: {0}")]
    Missing(String),
    /// The library is not the driver's.
    #[error("`{LIBRARY}` has no `{0}`")]
    Symbol(&'static str),
    /// The driver refuses.
    #[error("the NVIDIA driver answers `{call}` with {}", spoken(*code))]
    Refused {
        /// What was called.
        call: &'static str,
        /// Its answer.
        code: c_int,
    },
    /// No GPU of that number.
    #[error("the NVIDIA driver shows {}, no number {wanted}", counted(*count))]
    NoDevice {
        /// Which was asked for.
        wanted: usize,
        /// How many there are.
        count: usize,
    },
}

fn counted(count: usize) -> String {
    match count {
        0 => "no GPU".to_owned(),
        1 => "1 GPU".to_owned(),
        count => format!("{count} GPUs"),
    }
}

/// Words for the answers that people meet.
fn spoken(code: c_int) -> String {
    let words = match code {
        3 => "not initialised",
        34 => "this library is a stub for building, not a driver",
        46 => "the GPU is in use by others alone (exclusive mode)",
        100 => "there is no GPU",
        101 => "there is no such GPU",
        802 => "the system is not ready (is nvidia-fabricmanager running?)",
        803 => "the kernel's module and the library are of different versions",
        804 => "forward compatibility is not supported on this GPU",
        999 => "an unknown error",
        _ => return format!("error {code}"),
    };
    format!("error {code}: {words}")
}

/// The driver, started.
pub struct Driver {
    library: Library,
}

/// A call that writes one thing.
type Writes<T> = unsafe extern "C" fn(*mut T) -> c_int;

impl Driver {
    /// Finds and starts the driver. It shows the GPUs that `CUDA_VISIBLE_DEVICES` names.
    pub fn start() -> Result<Self, DriverError> {
        Self::of(LIBRARY)
    }

    fn of(library: &str) -> Result<Self, DriverError> {
        #[expect(unsafe_code, reason = "a library's own code runs when it is opened")]
        let library = unsafe { Library::new(library) };
        let library = library.map_err(|error| {
            // The loader's words stand at the end of the chain.
            let mut last: &dyn std::error::Error = &error;
            while let Some(source) = last.source() {
                last = source;
            }
            DriverError::Missing(last.to_string())
        })?;
        let driver = Self { library };
        driver.call("cuInit", |init: unsafe extern "C" fn(u32) -> c_int| {
            #[expect(unsafe_code, reason = "cuInit(flags), of which there are none")]
            unsafe {
                init(0)
            }
        })?;
        Ok(driver)
    }

    /// Calls a function of the driver.
    fn call<F: Copy>(
        &self,
        name: &'static str,
        with: impl FnOnce(F) -> c_int,
    ) -> Result<(), DriverError> {
        #[expect(unsafe_code, reason = "the signature is that of the driver API")]
        let function = unsafe { self.library.get::<F>(name.as_bytes()) };
        match with(*function.map_err(|_| DriverError::Symbol(name))?) {
            0 => Ok(()),
            code => Err(DriverError::Refused { call: name, code }),
        }
    }

    /// Calls a function that writes one number.
    fn number<T: Default>(&self, name: &'static str) -> Result<T, DriverError> {
        let mut number = T::default();
        self.call(name, |function: Writes<T>| {
            #[expect(unsafe_code, reason = "it writes one number of this type")]
            unsafe {
                function(&raw mut number)
            }
        })?;
        Ok(number)
    }

    /// Returns the newest CUDA that the driver knows.
    pub fn version(&self) -> Result<CudaVersion, DriverError> {
        let version: c_int = self.number("cuDriverGetVersion")?;
        Ok(CudaVersion(version.unsigned_abs()))
    }

    /// Counts the GPUs that it shows.
    pub fn count(&self) -> Result<usize, DriverError> {
        let count: c_int = self.number("cuDeviceGetCount")?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Describes a GPU of those that it shows.
    pub fn gpu(&self, number: usize) -> Result<Gpu, DriverError> {
        let device = self.device(number)?;
        let mut name = [0 as c_char; 256];
        self.call(
            "cuDeviceGetName",
            |function: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int| {
                // One less: the end stays 0 whatever is written.
                #[expect(unsafe_code, reason = "it writes a name of at most that length")]
                unsafe {
                    function(name.as_mut_ptr(), name.len() as c_int - 1, device)
                }
            },
        )?;
        #[expect(unsafe_code, reason = "the last element is 0")]
        let name = unsafe { CStr::from_ptr(name.as_ptr()) };
        let mut memory = 0usize;
        self.call(
            "cuDeviceTotalMem_v2",
            |function: unsafe extern "C" fn(*mut usize, c_int) -> c_int| {
                #[expect(unsafe_code, reason = "it writes one number")]
                unsafe {
                    function(&raw mut memory, device)
                }
            },
        )?;
        let mut capability = [0 as c_int; 2];
        for (attribute, value) in CAPABILITY.into_iter().zip(&mut capability) {
            self.call(
                "cuDeviceGetAttribute",
                |function: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int| {
                    #[expect(unsafe_code, reason = "it writes one number")]
                    unsafe {
                        function(value, attribute, device)
                    }
                },
            )?;
        }
        Ok(Gpu {
            name: name.to_string_lossy().into_owned(),
            capability: capability[0].unsigned_abs() * 10 + capability[1].unsigned_abs(),
            memory_bytes: memory as u64,
            driver: self.version()?,
        })
    }

    fn device(&self, number: usize) -> Result<c_int, DriverError> {
        let count = self.count()?;
        if number >= count {
            return Err(DriverError::NoDevice {
                wanted: number,
                count,
            });
        }
        let mut device = 0;
        self.call(
            "cuDeviceGet",
            |function: unsafe extern "C" fn(*mut c_int, c_int) -> c_int| {
                #[expect(unsafe_code, reason = "it writes one number")]
                unsafe {
                    function(&raw mut device, number as c_int)
                }
            },
        )?;
        Ok(device)
    }

    /// Returns how many bytes of this process's GPU are free, and of how many.
    pub fn free_memory(&self) -> Result<(u64, u64), DriverError> {
        let (mut free, mut total) = (0usize, 0usize);
        self.call(
            "cuMemGetInfo_v2",
            |function: unsafe extern "C" fn(*mut usize, *mut usize) -> c_int| {
                #[expect(unsafe_code, reason = "it writes two numbers")]
                unsafe {
                    function(&raw mut free, &raw mut total)
                }
            },
        )?;
        Ok((free as u64, total as u64))
    }

    /// Returns the most bytes of a GPU that the tensors of this process took at once.
    pub fn peak_memory(&self, number: usize) -> Result<u64, DriverError> {
        let device = self.device(number)?;
        let mut pool: *mut c_void = std::ptr::null_mut();
        self.call(
            "cuDeviceGetDefaultMemPool",
            |function: unsafe extern "C" fn(*mut *mut c_void, c_int) -> c_int| {
                #[expect(unsafe_code, reason = "it writes one handle")]
                unsafe {
                    function(&raw mut pool, device)
                }
            },
        )?;
        let mut bytes = 0u64;
        self.call(
            "cuMemPoolGetAttribute",
            |function: unsafe extern "C" fn(*mut c_void, c_int, *mut c_void) -> c_int| {
                #[expect(unsafe_code, reason = "this attribute is a number of 64 bits")]
                unsafe {
                    function(pool, MOST_USED, (&raw mut bytes).cast())
                }
            },
        )?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_written_as_people_write_them() {
        assert_eq!(CudaVersion(13000).to_string(), "13.0");
        assert_eq!(CudaVersion(12040).to_string(), "12.4");
        assert!(CudaVersion(12090) < CudaVersion(13000));
    }

    #[test]
    fn peaks_are_those_of_the_gpu_that_is_named() {
        let peak = |name: &str, products| {
            let gpu = Gpu {
                name: name.to_owned(),
                capability: 90,
                memory_bytes: 1,
                driver: CudaVersion(13000),
            };
            gpu.peak_flops(products)
        };
        assert_eq!(peak("NVIDIA H100 80GB HBM3", Products::Bf16), Some(989e12));
        assert_eq!(peak("NVIDIA H100 PCIe", Products::Bf16), Some(756e12));
        assert_eq!(peak("NVIDIA L40S", Products::F32), Some(91.6e12));
        assert_eq!(peak("NVIDIA L4", Products::F32), Some(30.3e12));
        assert_eq!(peak("NVIDIA GeForce 8", Products::F32), None);
    }

    #[test]
    fn what_is_no_driver_says_so() {
        let Err(error) = Driver::of("libno-such-library.so.1") else {
            panic!("there is no such library");
        };
        let text = error.to_string();
        assert!(
            text.starts_with("there is no NVIDIA driver: libno-such-library.so.1"),
            "{text}"
        );
        let Err(error) = Driver::of("libc.so.6") else {
            panic!("the C library is no driver");
        };
        assert_eq!(error, DriverError::Symbol("cuInit"));
        let text = DriverError::Refused {
            call: "cuInit",
            code: 803,
        };
        assert!(text.to_string().contains("different versions"));
    }
}
