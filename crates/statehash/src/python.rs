//! The only file that names PyO3. `python/the0/statehash.pyi` is the contract that it keeps.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyType};

use crate::error::{Error, Pulse};
use crate::pool::Pool;
use crate::{block, compare, index, pack, recheck, replay, scan, segment, tree, unpack, unzip, watch};

mod errors {
    use pyo3::create_exception;
    use pyo3::exceptions::PyValueError;
    create_exception!(
        the0.statehash,
        FormatError,
        PyValueError,
        "Bytes that are not ours, are damaged, or are of a newer format."
    );
    create_exception!(the0.statehash, DigestError, PyValueError, "Bytes that are not the ones that were named.");
    create_exception!(the0.statehash, LimitError, PyValueError, "A stated limit was passed.");
}

/// The one place where the core's errors become exceptions; OSError picks its subclass from the errno.
fn raised(e: Error) -> PyErr {
    match e {
        Error::Os { path, errno } => {
            let number = errno.raw_os_error();
            let text = std::io::Error::from_raw_os_error(number).to_string();
            let text = text.split(" (os error").next().unwrap_or_default().to_owned();
            Python::attach(|py| {
                if path.is_empty() {
                    PyOSError::new_err((number, text))
                } else {
                    PyOSError::new_err((number, text, PyBytes::new(py, &path).unbind()))
                }
            })
        }
        Error::Format(s) => errors::FormatError::new_err(s),
        Error::Digest(s) => errors::DigestError::new_err(s),
        Error::Limit(s) => errors::LimitError::new_err(s),
        Error::Misuse(s) => PyValueError::new_err(s),
        Error::Interrupted => PyValueError::new_err("interrupted"),
    }
}

/// Runs `work` without the GIL. Its pulse looks for Python's signals about ten times a second on this thread, so
/// that Ctrl-C ends long work.
fn detached<R: Send>(py: Python<'_>, work: impl FnOnce(Pulse<'_>) -> crate::error::Result<R> + Send) -> PyResult<R> {
    let caller = std::thread::current().id();
    let begun = Instant::now();
    let next_ms = AtomicU64::new(100);
    let stopped = AtomicBool::new(false);
    let reason: Mutex<Option<PyErr>> = Mutex::new(None);
    let pulse = || {
        if !stopped.load(Ordering::Relaxed) {
            let now_ms = begun.elapsed().as_millis() as u64;
            if now_ms < next_ms.load(Ordering::Relaxed) || std::thread::current().id() != caller {
                return Ok(());
            }
            next_ms.store(now_ms + 100, Ordering::Relaxed);
            let Err(e) = Python::attach(|py| py.check_signals()) else { return Ok(()) };
            *reason.lock().unwrap_or_else(|e| e.into_inner()) = Some(e);
            stopped.store(true, Ordering::Relaxed);
        }
        Err(Error::Interrupted)
    };
    let result = py.detach(|| work(&pulse));
    match (result, reason.into_inner().unwrap_or_else(|e| e.into_inner())) {
        (Err(Error::Interrupted), Some(e)) => Err(e),
        (result, _) => result.map_err(raised),
    }
}

/// A descriptor that the caller keeps open during the call.
struct Fd(i32);

impl Fd {
    fn own(&self) -> PyResult<OwnedFd> {
        if self.0 < 0 {
            return Err(raised(Error::os(b"", rustix::io::Errno::BADF)));
        }
        // SAFETY: the number is only used for this one fcntl, which answers EBADF when it is not open.
        let fd = unsafe { BorrowedFd::borrow_raw(self.0) };
        rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(|e| raised(Error::os(b"", e)))
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Fd {
    type Error = PyErr;
    fn extract(obj: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self(obj.extract()?))
    }
}

/// Bytes of a buffer, without copying where its owner says that they don't change.
enum Bytes {
    Shared(PyBuffer<u8>),
    Copied(Vec<u8>),
}

impl Bytes {
    fn new(obj: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyBuffer::<u8>::get(obj)?;
        if buffer.readonly() && buffer.is_c_contiguous() {
            Ok(Self::Shared(buffer))
        } else {
            Ok(Self::Copied(buffer.to_vec(obj.py())?))
        }
    }

    fn get(&self) -> &[u8] {
        match self {
            Bytes::Copied(bytes) => bytes,
            Bytes::Shared(buffer) if buffer.item_count() == 0 => &[],
            // SAFETY: contiguous and read-only, and the export keeps it alive and in place as long as `buffer`. An owner
            // that changes a buffer it exports as read-only breaks the protocol.
            Bytes::Shared(buffer) => unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.item_count()) },
        }
    }
}

fn count(threads: usize) -> usize {
    threads.clamp(1, 16)
}

#[pymodule]
mod statehash {
    use super::*;

    #[pymodule_export]
    use super::errors::{DigestError, FormatError, LimitError};
    #[pymodule_export]
    const BLOCK_BYTES: usize = block::BLOCK;
    #[pymodule_export]
    const SEGMENT_FORMAT: u32 = segment::VERSION;
    #[pymodule_export]
    const INDEX_FORMAT: u32 = index::VERSION;

    #[pyfunction]
    #[pyo3(signature = (data, /))]
    fn digest(py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<String> {
        let data = Bytes::new(data)?;
        let bytes = data.get();
        let hash = if bytes.len() < 64 * 1024 { blake3::hash(bytes) } else { py.detach(|| blake3::hash(bytes)) };
        Ok(hash.to_hex().to_string())
    }

    #[pyfunction]
    fn trim(py: Python<'_>) {
        // SAFETY: malloc_trim takes no pointers and may be called at any time from any thread.
        py.detach(|| unsafe { libc::malloc_trim(0) });
    }

    #[pyclass(module = "the0.statehash", frozen, get_all)]
    struct Entry {
        path: Py<PyBytes>,
        kind: &'static str,
        mode: u16,
        size: u64,
        mtime_ns: i64,
        digest: String,
    }

    impl Entry {
        fn new(py: Python<'_>, path: &[u8], node: &tree::Node) -> Self {
            let kind = match node.body {
                tree::Body::Small | tree::Body::Large(_) => "file",
                tree::Body::Link => "link",
                tree::Body::Dir(_) => "dir",
            };
            let hex = |d: &block::Digest| d.iter().map(|b| format!("{b:02x}")).collect();
            Self {
                path: PyBytes::new(py, path).unbind(),
                kind,
                mode: node.meta.mode,
                size: node.meta.size,
                mtime_ns: node.meta.mtime,
                digest: if kind == "dir" { String::new() } else { hex(&node.digest) },
            }
        }
    }

    #[pymethods]
    impl Entry {
        fn __repr__(&self, py: Python<'_>) -> String {
            format!("Entry({}, {}, {:o}, {} bytes)", crate::error::shown(self.path.as_bytes(py)), self.kind, self.mode, self.size)
        }
    }

    enum Owner {
        Index(Py<Index>, u64),
        Listing(Py<Listing>),
    }

    #[pyclass(module = "the0.statehash")]
    struct Entries {
        owner: Owner,
        cursor: tree::Cursor,
    }

    #[pymethods]
    impl Entries {
        fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
            slf
        }

        fn __next__(&mut self, py: Python<'_>) -> PyResult<Option<Entry>> {
            let Self { owner, cursor } = self;
            let mut next = |tree: &tree::Tree| cursor.next(tree).map(|(path, node)| Entry::new(py, &path, node));
            match owner {
                Owner::Index(index, stamp) => {
                    let index = index.try_borrow(py)?;
                    if index.core.stamp() != *stamp {
                        return Err(PyValueError::new_err("the index changed while its entries were walked"));
                    }
                    Ok(next(index.core.tree()))
                }
                Owner::Listing(listing) => Ok(next(&listing.try_borrow(py)?.core.catalog().tree)),
            }
        }
    }

    #[pyclass(module = "the0.statehash")]
    struct Index {
        core: index::Index,
    }

    #[pymethods]
    impl Index {
        #[new]
        fn new() -> Self {
            Self { core: index::Index::default() }
        }

        #[classmethod]
        fn open(cls: &Bound<'_, PyType>, dir_fd: Fd, name: &str) -> PyResult<Self> {
            let dir = dir_fd.own()?;
            let core = detached(cls.py(), |_| index::Index::open(dir.as_fd(), name))?;
            Ok(Self { core })
        }

        #[pyo3(signature = (dir_fd, name, *, sync = false))]
        fn save(&mut self, py: Python<'_>, dir_fd: Fd, name: &str, sync: bool) -> PyResult<()> {
            let dir = dir_fd.own()?;
            detached(py, |_| self.core.save(dir.as_fd(), name, sync))
        }

        #[getter]
        fn meta<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
            PyBytes::new(py, self.core.meta())
        }

        fn set_meta(&mut self, meta: &[u8]) -> PyResult<()> {
            self.core.set_meta(meta).map_err(raised)
        }

        #[getter]
        fn pending_meta<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
            self.core.staged().map(|s| PyBytes::new(py, &s.meta))
        }

        fn stage(&mut self, py: Python<'_>, pack: PyRef<'_, Pack>, keys: Vec<String>, meta: &[u8]) -> PyResult<()> {
            let pack = &pack.core;
            detached(py, |_| {
                let staged = pack.staged(&self.core, &keys, meta)?;
                self.core.stage(staged)
            })
        }

        fn confirm(&mut self, py: Python<'_>, meta: &[u8]) -> PyResult<()> {
            detached(py, |_| self.core.confirm(meta))
        }

        fn abandon(&mut self) -> PyResult<()> {
            self.core.abandon().map_err(raised)
        }

        fn segments(&self) -> Vec<(String, String, u64, u64)> {
            let catalog = self.core.catalog();
            let hex = |d: &[u8; 32]| blake3::Hash::from_bytes(*d).to_hex().to_string();
            catalog.segments.iter().zip(catalog.live()).map(|(s, live)| (s.key.clone(), hex(&s.digest), s.stored, live)).collect()
        }

        fn entries(slf: Bound<'_, Self>) -> Entries {
            let (cursor, stamp) = {
                let index = slf.borrow();
                (tree::Cursor::new(index.core.tree()), index.core.stamp())
            };
            Entries { owner: Owner::Index(slf.unbind(), stamp), cursor }
        }

        fn get(&self, py: Python<'_>, path: &[u8]) -> Option<Entry> {
            self.core.tree().get(path).map(|node| Entry::new(py, path, node))
        }

        #[getter]
        fn files(&self) -> u64 {
            self.core.tree().files
        }

        #[getter]
        fn bytes(&self) -> u64 {
            self.core.tree().bytes
        }
    }

    #[pyclass(module = "the0.statehash", frozen)]
    struct Scan {
        core: Arc<scan::Scan>,
    }

    #[pymethods]
    impl Scan {
        #[getter]
        fn changed(&self) -> usize {
            self.core.changed.len()
        }

        #[getter]
        fn removed(&self) -> usize {
            self.core.removed.len()
        }

        #[getter]
        fn files(&self) -> u64 {
            self.core.files
        }

        #[getter]
        fn bytes(&self) -> u64 {
            self.core.bytes
        }

        #[getter]
        fn specials<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
            self.core.specials.iter().map(|p| PyBytes::new(py, p)).collect()
        }

        #[getter]
        fn largest<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyBytes>, u64)> {
            self.core.largest.as_ref().map(|(path, size)| (PyBytes::new(py, path), *size))
        }

        fn __bool__(&self) -> bool {
            !self.core.changed.is_empty() || !self.core.removed.is_empty()
        }

        #[getter]
        fn whole(&self) -> bool {
            self.core.whole
        }

        fn touches(&self, prefix: &[u8]) -> bool {
            self.core.touches(prefix)
        }

        fn carry(&self, py: Python<'_>, index: PyRef<'_, Index>, keys: Vec<String>) -> PyResult<Scan> {
            let (scan, index) = (&self.core, &index.core);
            let core = detached(py, |_| scan.carry(index, &keys))?;
            Ok(Scan { core: Arc::new(core) })
        }

        fn keep(&self, py: Python<'_>, paths: Vec<Vec<u8>>) -> Scan {
            Scan { core: Arc::new(py.detach(|| self.core.keep(&paths))) }
        }
    }

    #[pyfunction(name = "scan")]
    #[pyo3(signature = (root_fd, index, *, skip = crate::paths::RESERVED, threads = 1, watch = None, whole = true))]
    fn walk(
        py: Python<'_>,
        root_fd: Fd,
        index: PyRef<'_, Index>,
        skip: &[u8],
        threads: usize,
        watch: Option<PyRef<'_, Watch>>,
        whole: bool,
    ) -> PyResult<Scan> {
        let (root, index) = (root_fd.own()?, &index.core);
        let options = scan::Options { skip, threads: count(threads), all: false };
        let watch = watch.as_ref().map(|w| &w.core);
        let core = detached(py, |pulse| match watch {
            Some(watch) => scan::watched(root.as_fd(), index, &options, watch, (!whole).then_some(0), pulse),
            None => scan::scan(root.as_fd(), index, &options, pulse),
        })?;
        Ok(Scan { core: Arc::new(core) })
    }

    #[pyclass(module = "the0.statehash", frozen)]
    struct Watch {
        core: watch::Watch,
    }

    #[pymethods]
    impl Watch {
        #[new]
        #[pyo3(signature = (root_fd, *, skip = crate::paths::RESERVED, max_folders = 100_000))]
        fn new(root_fd: Fd, skip: &[u8], max_folders: usize) -> PyResult<Self> {
            let root = root_fd.own()?;
            Ok(Self { core: watch::Watch::new(root.as_fd(), skip, max_folders).map_err(raised)? })
        }

        fn fileno(&self) -> i32 {
            self.core.queue().as_raw_fd()
        }

        fn gather(&self, py: Python<'_>) -> u64 {
            py.detach(|| self.core.gather())
        }

        #[getter]
        fn folders(&self) -> usize {
            self.core.folders()
        }

        #[getter]
        fn dirty<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
            self.core.dirty(0).iter().map(|p| PyBytes::new(py, p)).collect()
        }

        #[getter]
        fn blind(&self) -> Option<String> {
            self.core.blind().map(|why| match why {
                watch::Blind::Overflow => "overflow".into(),
                watch::Blind::Limit => "limit".into(),
                watch::Blind::System(e) => {
                    let text = std::io::Error::from(e).to_string();
                    text.split(" (os error").next().unwrap_or_default().to_owned()
                }
            })
        }

        fn moved_since(&self, py: Python<'_>, scan: PyRef<'_, Scan>) -> bool {
            let news = scan.core.news;
            py.detach(|| self.core.gather() > news || self.core.blind().is_some())
        }

        fn settle(&self, scan: PyRef<'_, Scan>) {
            self.core.settle(scan.core.news);
        }
    }

    #[pyclass(module = "the0.statehash")]
    #[derive(Default)]
    struct Recheck {
        core: recheck::Recheck,
    }

    #[pymethods]
    impl Recheck {
        #[new]
        fn new() -> Self {
            Self::default()
        }

        #[pyo3(signature = (root_fd, index, *, budget_bytes, budget_s, preferred_only = false))]
        fn step<'py>(
            &mut self,
            py: Python<'py>,
            root_fd: Fd,
            mut index: PyRefMut<'_, Index>,
            budget_bytes: u64,
            budget_s: f64,
            preferred_only: bool,
        ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
            let time = Duration::try_from_secs_f64(budget_s).map_err(|e| PyValueError::new_err(e.to_string()))?;
            let (root, index, core) = (root_fd.own()?, &mut index.core, &mut self.core);
            let found = detached(py, |pulse| core.step(root.as_fd(), index, budget_bytes, time, !preferred_only, pulse))?;
            Ok(found.iter().map(|p| PyBytes::new(py, p)).collect())
        }

        fn prefer(&mut self, index: PyRef<'_, Index>, after_ns: i64, upto_ns: i64) {
            self.core.prefer(&index.core, after_ns, upto_ns);
        }

        #[getter]
        fn preferred(&self) -> usize {
            self.core.preferred()
        }

        #[getter]
        fn rounds(&self) -> u64 {
            self.core.rounds
        }

        #[getter]
        fn bytes(&self) -> u64 {
            self.core.bytes
        }
    }

    #[pyclass(module = "the0.statehash", frozen)]
    struct Segment {
        core: segment::Segment,
        buffers: Arc<Pool>,
    }

    impl Drop for Segment {
        fn drop(&mut self) {
            self.buffers.give(std::mem::take(&mut self.core.bytes));
        }
    }

    #[pymethods]
    impl Segment {
        #[getter]
        fn digest(&self) -> String {
            blake3::Hash::from_bytes(self.core.digest).to_hex().to_string()
        }

        #[getter]
        fn size(&self) -> usize {
            self.core.bytes.len()
        }

        #[getter]
        fn raw_bytes(&self) -> u64 {
            self.core.raw
        }

        fn __len__(&self) -> usize {
            self.core.bytes.len()
        }

        // SAFETY (of the callers' contract): Python hands in a view that it owns.
        unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut pyo3::ffi::Py_buffer, flags: std::ffi::c_int) -> PyResult<()> {
            let bytes = &slf.get().core.bytes;
            let (at, len) = (bytes.as_ptr().cast_mut().cast(), bytes.len() as isize);
            // SAFETY: the class is frozen, so the bytes stay in place and unchanged as long as the object, of which the
            // view takes a reference; "read-only" is 1, so nobody writes through it.
            let failed = unsafe { pyo3::ffi::PyBuffer_FillInfo(view, slf.as_ptr(), at, len, 1, flags) } != 0;
            if failed {
                return Err(PyErr::fetch(slf.py()));
            }
            Ok(())
        }
    }

    #[pyclass(module = "the0.statehash")]
    struct Pack {
        core: pack::Pack,
        index: Py<Index>,
    }

    #[pymethods]
    impl Pack {
        #[new]
        #[pyo3(signature = (root_fd, index, scan, *, segment_bytes = 33_554_432, max_file_bytes = None, threads = 2))]
        fn new(
            root_fd: Fd,
            index: Py<Index>,
            scan: PyRef<'_, Scan>,
            segment_bytes: usize,
            max_file_bytes: Option<u64>,
            threads: usize,
        ) -> PyResult<Self> {
            let options = pack::Options { segment_bytes, max_file_bytes, threads: count(threads) };
            Ok(Self { core: pack::Pack::new(root_fd.own()?, Arc::clone(&scan.core), options), index })
        }

        fn next(&mut self, py: Python<'_>) -> PyResult<Option<Segment>> {
            let Self { core, index } = self;
            let index = index.try_borrow(py)?;
            let index = &index.core;
            let segment = detached(py, |pulse| core.next(index, pulse))?;
            Ok(segment.map(|segment| Segment { core: segment, buffers: Arc::clone(core.buffers()) }))
        }

        #[pyo3(signature = (*, watch = None, skip = crate::paths::RESERVED, threads = 1))]
        fn fold(&mut self, py: Python<'_>, watch: Option<PyRef<'_, Watch>>, skip: &[u8], threads: usize) -> PyResult<Scan> {
            let Self { core, index } = self;
            let index = index.try_borrow(py)?;
            let (index, watch) = (&index.core, watch.as_ref().map(|w| &w.core));
            let options = scan::Options { skip, threads: count(threads), all: false };
            let core = detached(py, |pulse| core.fold(index, &options, watch, pulse))?;
            Ok(Scan { core })
        }

        fn replace(&mut self, py: Python<'_>, root_fd: Fd, paths: Vec<Vec<u8>>) -> PyResult<Scan> {
            let Self { core, index } = self;
            let (root, index) = (root_fd.own()?, index.try_borrow(py)?);
            let index = &index.core;
            let core = detached(py, |_| core.replace(index, root, &paths))?;
            Ok(Scan { core })
        }

        fn differing<'py>(&mut self, py: Python<'py>, paths: Vec<Vec<u8>>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
            let Self { core, index } = self;
            let index = index.try_borrow(py)?;
            let index = &index.core;
            let found = detached(py, |_| core.differing(index, &paths))?;
            Ok(found.iter().map(|p| PyBytes::new(py, p)).collect())
        }

        #[getter]
        fn databases<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
            self.core.databases().iter().map(|p| PyBytes::new(py, p)).collect()
        }

        #[getter]
        fn empty(&self) -> bool {
            self.core.finished() && self.core.segments() == 0
        }

        #[getter]
        fn moved(&self) -> bool {
            self.core.moved
        }

        #[getter]
        fn incomplete<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
            self.core.incomplete.iter().map(|p| PyBytes::new(py, p)).collect()
        }

        #[getter]
        fn doubtful<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
            self.core.doubtful.iter().map(|p| PyBytes::new(py, p)).collect()
        }

        #[getter]
        fn dropped(&self, py: Python<'_>) -> PyResult<Vec<String>> {
            let index = self.index.try_borrow(py)?;
            let keys = self.core.dropped(&index.core).map_err(raised)?;
            Ok(keys.into_iter().map(str::to_owned).collect())
        }

        fn touches(&self, prefix: &[u8]) -> bool {
            self.core.touches(prefix)
        }
    }

    #[pyclass(module = "the0.statehash")]
    struct Restore {
        core: unpack::Restore,
    }

    #[pymethods]
    impl Restore {
        #[new]
        #[pyo3(signature = (dest_fd, *, max_bytes = None, max_entries = 50_000_000))]
        fn new(dest_fd: Fd, max_bytes: Option<u64>, max_entries: u64) -> PyResult<Self> {
            Ok(Self { core: unpack::Restore::new(dest_fd.own()?, replay::Limits { max_bytes, max_entries }) })
        }

        #[pyo3(signature = (segment, *, key, digest))]
        fn apply(&mut self, py: Python<'_>, segment: &Bound<'_, PyAny>, key: &str, digest: &str) -> PyResult<()> {
            let bytes = Bytes::new(segment)?;
            let bytes = bytes.get();
            detached(py, |pulse| self.core.apply(bytes, key, digest, 2, pulse))
        }

        #[pyo3(signature = (*, movable = true))]
        fn finish(&mut self, py: Python<'_>, movable: bool) -> PyResult<()> {
            detached(py, |pulse| self.core.finish(movable, pulse))
        }

        fn index(&self, py: Python<'_>, root_fd: Fd) -> PyResult<Index> {
            let root = root_fd.own()?;
            Ok(Index { core: detached(py, |pulse| self.core.index(root.as_fd(), 2, pulse))? })
        }

        #[getter]
        fn bytes(&self) -> u64 {
            self.core.bytes()
        }
    }

    #[pyclass(module = "the0.statehash")]
    struct Listing {
        core: replay::Replay<()>,
    }

    #[pymethods]
    impl Listing {
        #[new]
        fn new() -> Self {
            Self { core: replay::Replay::new((), replay::Limits { max_bytes: None, max_entries: u64::MAX }) }
        }

        #[pyo3(signature = (segment, *, key, digest))]
        fn apply(&mut self, py: Python<'_>, segment: &Bound<'_, PyAny>, key: &str, digest: &str) -> PyResult<()> {
            let bytes = Bytes::new(segment)?;
            let bytes = bytes.get();
            detached(py, |pulse| self.core.apply(bytes, key, digest, 2, pulse))
        }

        fn finish(&mut self, py: Python<'_>) -> PyResult<()> {
            detached(py, |_| self.core.finish())
        }

        fn entries(slf: Bound<'_, Self>) -> Entries {
            let cursor = tree::Cursor::new(&slf.borrow().core.catalog().tree);
            Entries { owner: Owner::Listing(slf.unbind()), cursor }
        }
    }

    #[pyfunction]
    #[pyo3(signature = (root_fd, index, *, skip = crate::paths::RESERVED, limit = 100, threads = 2))]
    fn differences<'py>(
        py: Python<'py>,
        root_fd: Fd,
        mut index: PyRefMut<'_, Index>,
        skip: &[u8],
        limit: usize,
        threads: usize,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let (root, index) = (root_fd.own()?, &mut index.core);
        let found = detached(py, |pulse| compare::differences(root.as_fd(), index, skip, limit, count(threads), pulse))?;
        Ok(found.iter().map(|p| PyBytes::new(py, p)).collect())
    }

    #[pyclass(module = "the0.statehash", frozen, get_all)]
    struct Unzipped {
        entries: u64,
        bytes: u64,
    }

    #[pyfunction(name = "unzip")]
    #[pyo3(signature = (archive_fd, dest_fd, *, max_entries = 200_000, max_bytes = 8 << 30, max_ratio = 200, threads = 2))]
    fn extract(
        py: Python<'_>,
        archive_fd: Fd,
        dest_fd: Fd,
        max_entries: u64,
        max_bytes: u64,
        max_ratio: u64,
        threads: usize,
    ) -> PyResult<Unzipped> {
        let (archive, dest) = (archive_fd.own()?, dest_fd.own()?);
        let limits = unzip::Limits { max_entries, max_bytes, max_ratio };
        let done = detached(py, |pulse| unzip::unzip(archive.as_fd(), dest.as_fd(), limits, count(threads), pulse))?;
        Ok(Unzipped { entries: done.entries, bytes: done.bytes })
    }
}
