//! The only file that names PyO3.
use pyo3::prelude::*;

#[pymodule]
mod statehash {
    use pyo3::prelude::*;

    /// BLAKE3 of a bytes-like object, 64 hex digits.
    #[pyfunction]
    #[pyo3(signature = (data, /))]
    fn digest(data: &[u8]) -> String {
        blake3::hash(data).to_hex().to_string()
    }
}
