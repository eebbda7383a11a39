//! Survives a mapped file that shrinks: reads past its new end meet zero pages instead of SIGBUS.
//!
//! Every [`super::Map`] registers its address range in a lock-free list. [`install_sigbus_guard`], which a program
//! calls and the library never does, sets a SIGBUS handler that looks the faulting address up there. Inside a
//! registered range it maps zero pages from the faulting page to the end of the range (whatever the cause, the rest is
//! not to be trusted, and one mapping cannot run into the kernel's limit on mappings), sets the range's damaged flag
//! and returns: the read goes on with zeros. Any other SIGBUS goes to the handler that was there before.
//!
//! The handler does nothing that is not async-signal-safe: atomic loads and stores, `mmap`, `sigaction`.
//! Nodes of the list are reused and never freed, so the handler can walk it at any moment; a sequence number per node
//! tells it when a range was being changed under its eyes.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};

/// One address range, or a free place for one.
struct Node {
    /// Set before the node is published, never changed after.
    next: AtomicPtr<Node>,
    /// Somebody owns this node.
    is_taken: AtomicBool,
    /// Odd while `start` and `end` are being changed.
    sequence: AtomicUsize,
    start: AtomicUsize,
    end: AtomicUsize,
    is_damaged: AtomicBool,
}

static HEAD: AtomicPtr<Node> = AtomicPtr::new(ptr::null_mut());

/// All nodes there are.
fn nodes() -> impl Iterator<Item = &'static Node> {
    let mut next = HEAD.load(Ordering::Acquire).cast_const();
    std::iter::from_fn(move || {
        // SAFETY: `next` is null or points to a node that `Registration::new` leaked and published whole; nodes are
        // never freed and only their atomic fields change.
        let node = unsafe { next.as_ref() }?;
        next = node.next.load(Ordering::Relaxed);
        Some(node)
    })
}

impl Node {
    fn set(&self, start: usize, end: usize) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// End of the range if it holds `address`. A range in change holds nothing: the map that faults is not in change,
    /// because whoever reads it keeps it alive.
    fn end_if_holds(&self, address: usize) -> Option<usize> {
        let before = self.sequence.load(Ordering::Acquire);
        let (start, end) = (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let after = self.sequence.load(Ordering::Relaxed);
        (before == after && before.is_multiple_of(2) && (start..end).contains(&address)).then_some(end)
    }
}

/// An address range known to the guard, until dropped.
pub(super) struct Registration(&'static Node);

impl Registration {
    /// Registers `length` bytes at `start`.
    pub(super) fn new(start: usize, length: usize) -> Self {
        let free = nodes().find(|node| !node.is_taken.swap(true, Ordering::AcqRel));
        let node = free.unwrap_or_else(Self::grow);
        node.is_damaged.store(false, Ordering::Relaxed);
        node.set(start, start + length);
        Self(node)
    }

    /// A new node, taken, at the head of the list.
    fn grow() -> &'static Node {
        let node = Box::leak(Box::new(Node {
            next: AtomicPtr::new(ptr::null_mut()),
            is_taken: AtomicBool::new(true),
            sequence: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            is_damaged: AtomicBool::new(false),
        }));
        let node: &'static Node = node;
        let mut head = HEAD.load(Ordering::Acquire);
        loop {
            node.next.store(head, Ordering::Relaxed);
            let address = ptr::from_ref(node).cast_mut();
            match HEAD.compare_exchange(head, address, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return node,
                Err(newer) => head = newer,
            }
        }
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.0.is_damaged.load(Ordering::Relaxed)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.0.set(0, 0);
        self.0.is_taken.store(false, Ordering::Release);
    }
}

/// Installs the SIGBUS handler for this process, once; later calls do nothing.
///
/// For programs, which own their signal handlers; a library that is a guest should offer it and not call it. Gives
/// false where the system has no such signal (a mapped file cannot shrink there).
pub fn install_sigbus_guard() -> std::io::Result<bool> {
    #[cfg(unix)]
    {
        handler::install().map(|()| true)
    }
    #[cfg(not(unix))]
    {
        Ok(false)
    }
}

#[cfg(unix)]
mod handler {
    //! The signal handler itself.

    use std::io;
    use std::mem::MaybeUninit;
    use std::ptr;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, OnceLock, PoisonError};

    use super::nodes;

    /// What handled SIGBUS before.
    static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
    /// Bytes of a page; set before the handler is.
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    static INSTALLING: Mutex<()> = Mutex::new(());

    pub(super) fn install() -> io::Result<()> {
        let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
        if PREVIOUS.get().is_some() {
            return Ok(());
        }
        // SAFETY: sysconf has no preconditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).ok().filter(|page| page.is_power_of_two());
        PAGE.store(page.ok_or_else(io::Error::last_os_error)?, Ordering::Relaxed);

        let mut previous = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: a null new action only asks for the present one, which is written to `previous`.
        if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), previous.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above succeeded, so it filled `previous`.
        let previous = unsafe { previous.assume_init() };

        // SAFETY: sigaction is plain C data for which all zeros is a valid value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let entry: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
        action.sa_sigaction = entry as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: `sa_mask` is part of `action`, which is ours.
        unsafe { libc::sigemptyset(&raw mut action.sa_mask) };
        // Set first, so that the handler finds it from its first call on.
        let _ = PREVIOUS.set(previous);
        // SAFETY: `action` is whole and its handler is async-signal-safe (see the head of this file).
        if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: with SA_SIGINFO the kernel gives a valid siginfo_t.
        let (cause, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
        // A code of zero or less means another process sent the signal: no address is at fault.
        let held = || nodes().find_map(|node| node.end_if_holds(address).map(|end| (node, end)));
        if let Some((node, end)) = (cause > 0).then(held).flatten()
            && put_zeros(address, end)
        {
            node.is_damaged.store(true, Ordering::Relaxed);
            return;
        }
        chain(signal, info, context);
    }

    /// Maps zero pages over everything from the page of `address` up to `end`.
    fn put_zeros(address: usize, end: usize) -> bool {
        let page = address & !(PAGE.load(Ordering::Relaxed) - 1);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: the pages from `page` to `end` belong to a registered, living map: the faulting thread reads it and
        // thereby keeps it alive, and `Map` unregisters before it unmaps. Maps start at page bounds, so `page` is not
        // before the map. The new pages are as readable as the old ones, and dropping the map unmaps them with it.
        let mapped = unsafe { libc::mmap(page as *mut libc::c_void, end - page, libc::PROT_READ, flags, -1, 0) };
        mapped as usize == page
    }

    /// Hands a signal that is not ours to whoever had it before.
    fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        let previous = PREVIOUS.get();
        let handler = previous.map_or(libc::SIG_DFL, |previous| previous.sa_sigaction);
        if let Some(previous) = previous.filter(|_| handler != libc::SIG_DFL && handler != libc::SIG_IGN) {
            if previous.sa_flags & libc::SA_SIGINFO != 0 {
                type Full = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
                // SAFETY: with SA_SIGINFO set, the stored address is that of a handler with three arguments.
                let call = unsafe { std::mem::transmute::<usize, Full>(handler) };
                call(signal, info, context);
            } else {
                // SAFETY: without SA_SIGINFO, the stored address is that of a handler with one argument.
                let call = unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
                call(signal);
            }
            return;
        }
        // Nobody had it: make it deadly again and return, so that the faulting read raises it anew and the process
        // ends as it would have without us. A signal sent by another process is raised anew by hand.
        // SAFETY: sigaction is plain C data for which all zeros is a valid value; SIG_DFL is a valid handler.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = libc::SIG_DFL;
        // SAFETY: `action` is whole; both calls are async-signal-safe.
        unsafe {
            libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
            if (*info).si_code <= 0 {
                libc::raise(signal);
            }
        }
    }
}
