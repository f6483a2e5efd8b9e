//! What the fuzz targets share: input taken apart, a folder among things that must stay as they are, and trees read by
//! plain means.

pub mod commits;
pub mod input;
pub mod place;
pub mod seeds;
pub mod segments;
#[path = "../../tests/common/shared.rs"]
pub mod shared;

pub use shared::{folder, rows, Rows};
