//! Settings of the C allocator, the same in both binaries.

/// Makes glibc keep freed memory instead of returning it to the system.
///
/// By default it unmaps every large tensor when it is freed, and the next one pays a page fault for each 4 KiB: about half
/// of a CPU training step. Elsewhere this does nothing.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[allow(unsafe_code, reason = "mallopt is a C function")]
        // SAFETY: mallopt takes two integers and touches only the allocator's own settings; no other thread runs yet.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20); // the largest glibc accepts
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        }
    }
}
