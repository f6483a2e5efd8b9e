//! Buffers that are used again: on many machines the first touch of fresh memory costs more than filling it.

use std::sync::{Mutex, MutexGuard};

/// More than this many are not kept.
const KEPT: usize = 64;

#[derive(Default)]
pub struct Pool(Mutex<State>);

#[derive(Default)]
struct State {
    buffers: Vec<Vec<u8>>,
    closed: bool,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A buffer, empty but perhaps with room.
    pub fn take(&self) -> Vec<u8> {
        let mut buffer = self.lock().buffers.pop().unwrap_or_default();
        buffer.clear();
        buffer
    }

    pub fn give(&self, buffer: Vec<u8>) {
        let mut state = self.lock();
        if !state.closed && buffer.capacity() > 0 && state.buffers.len() < KEPT {
            state.buffers.push(buffer);
        }
    }

    /// Frees what is kept, and what is still given back.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.buffers = Vec::new();
    }
}
