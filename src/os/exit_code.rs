//! The exit code of the process, which the C library tells its exit functions.

/// Calls `function` with the exit code when the process exits, after Python has ended. Returns false where the system
/// has no such call. A process that dies of a signal, or by `_exit`, does not call the function.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn call(function: fn(i32)) -> bool {
    use std::ffi::{c_int, c_void};

    #[expect(unsafe_code, reason = "the libc crate does not have this function")]
    unsafe extern "C" {
        fn on_exit(function: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    }

    extern "C" fn on_code(code: c_int, function: *mut c_void) {
        // SAFETY: the pointer is the function that `call` was given.
        #[expect(unsafe_code, reason = "exit functions have no safe form")]
        let function = unsafe { std::mem::transmute::<*mut c_void, fn(i32)>(function) };
        function(code);
    }

    // SAFETY: the function belongs to this library, which is never unloaded.
    #[expect(unsafe_code, reason = "exit functions have no safe form")]
    let failed = unsafe { on_exit(on_code, function as *mut c_void) };
    failed == 0
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn call(_function: fn(i32)) -> bool {
    false
}
