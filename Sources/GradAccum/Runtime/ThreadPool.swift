import CShims
import Glibc
import Synchronization

/// Workers that share the tiles of one loop with the thread that asks for it.
///
/// Started on first use, sized by ``Runtime``, and made anew in the child of a `fork()`. What a tile computes
/// depends on nothing but its number, so results do not depend on who ran it.
final class ThreadPool: @unchecked Sendable {
    /// What is run for a tile; the second number tells apart those who run tiles of one loop, and is less than their count.
    typealias Body = (_ tile: Int, _ worker: Int) throws(GAError) -> Void

    /// What is being run; written before a job is opened, read by those who joined it.
    private struct Job {
        var body: UnsafePointer<Body>?
        var tiles = 0
    }

    let threadCount: Int
    private var workerCount: Int { threadCount - 1 }
    private var isStarted = false
    private var job = Job()
    private var failure: GAError?
    private let failureLock = Lock()

    /// Job number (upper 32 bits), workers that joined it (31 bits), and whether it is closed (lowest bit).
    private let state = Atomic<UInt64>(1)
    private let nextTile = Atomic<Int>(0)
    private let finished = Atomic<Int>(0)
    private let started = Atomic<Int>(0)
    private let busy = Atomic<Bool>(false)
    private let stopping = Atomic<Bool>(false)
    private let sleepers = Atomic<Int>(0)
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let wake = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)

    /// How often an idle worker looks for a job before it sleeps: the gap between two operations is shorter.
    private static let spins = 4000

    init(threadCount: Int) {
        self.threadCount = threadCount
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(wake, nil)
    }

    deinit {
        pthread_cond_destroy(wake)
        pthread_mutex_destroy(mutex)
        wake.deallocate()
        mutex.deallocate()
    }

    /// Whether this thread is a worker, which runs tiles of its own alone.
    static var isInTile: Bool { shims_thread_slot(Int32(SHIMS_SLOT_IN_TILE)) != nil }

    /// Runs `body` for every tile; the first error that a tile throws is thrown once all have ended.
    ///
    /// The caller has entered the compute mode, as the workers have.
    func run(tiles: Int, _ body: Body) throws(GAError) {
        guard tiles > 1, workerCount > 0, !ThreadPool.isInTile, !busy.exchange(true, ordering: .acquiring) else {
            for tile in 0..<tiles { try body(tile, 0) }
            return
        }
        if !isStarted { start() }
        let caught = withoutActuallyEscaping(body) { escapable -> GAError? in
            withUnsafePointer(to: escapable) { share($0, tiles: tiles) }
        }
        busy.store(false, ordering: .releasing)
        if let caught { throw caught }
    }

    /// Opens a job, works on it, closes it and waits for the workers that joined.
    private func share(_ body: UnsafePointer<Body>, tiles: Int) -> GAError? {
        job = Job(body: body, tiles: tiles)
        failure = nil
        nextTile.store(0, ordering: .relaxed)
        finished.store(0, ordering: .relaxed)
        let number = (state.load(ordering: .relaxed) >> 32) &+ 1
        state.store((number & 0xffff_ffff) << 32, ordering: .sequentiallyConsistent)
        if sleepers.load(ordering: .sequentiallyConsistent) > 0 {
            pthread_mutex_lock(mutex)
            pthread_cond_broadcast(wake)
            pthread_mutex_unlock(mutex)
        }
        work(as: 0)
        let closed = state.bitwiseOr(1, ordering: .acquiringAndReleasing).oldValue
        let joined = Int((closed & 0xffff_ffff) >> 1)
        var turns = 0
        while finished.load(ordering: .acquiring) < joined {
            turns &+= 1
            if turns < ThreadPool.spins { shims_pause() } else { sched_yield() }
        }
        return failure
    }

    private func work(as worker: Int) {
        while true {
            let tile = nextTile.add(1, ordering: .relaxed).oldValue
            guard tile < job.tiles else { return }
            do throws(GAError) {
                try job.body!.pointee(tile, worker)
            } catch {
                failureLock.withLock { if failure == nil { failure = error } }
                nextTile.store(job.tiles, ordering: .relaxed)
            }
        }
    }

    private func workerLoop() {
        let worker = started.add(1, ordering: .relaxed).newValue
        var last = state.load(ordering: .relaxed) >> 32 &- 1
        while let joined = nextJob(after: last) {
            last = joined
            work(as: worker)
            finished.add(1, ordering: .releasing)
        }
    }

    /// Waits for an open job that this worker has not joined yet, joins it, and returns its number.
    private func nextJob(after last: UInt64) -> UInt64? {
        var turns = 0
        while !stopping.load(ordering: .acquiring) {
            let seen = state.load(ordering: .acquiring)
            if seen & 1 == 0 && seen >> 32 != last {
                let joining = state.compareExchange(
                    expected: seen, desired: seen &+ 2, ordering: .acquiringAndReleasing)
                if joining.exchanged { return seen >> 32 }
                continue
            }
            turns &+= 1
            if turns < ThreadPool.spins { shims_pause() } else { sleep(unlike: last) }
        }
        return nil
    }

    private func sleep(unlike last: UInt64) {
        pthread_mutex_lock(mutex)
        sleepers.add(1, ordering: .sequentiallyConsistent)
        while !stopping.load(ordering: .sequentiallyConsistent) {
            let seen = state.load(ordering: .sequentiallyConsistent)
            if seen & 1 == 0 && seen >> 32 != last { break }
            pthread_cond_wait(wake, mutex)
        }
        sleepers.subtract(1, ordering: .sequentiallyConsistent)
        pthread_mutex_unlock(mutex)
    }

    /// Starts the workers with all signals blocked, so that the host's handlers run on the host's threads.
    private func start() {
        isStarted = true
        var all = sigset_t()
        var before = sigset_t()
        sigfillset(&all)
        pthread_sigmask(SIG_SETMASK, &all, &before)
        defer { pthread_sigmask(SIG_SETMASK, &before, nil) }
        for _ in 0..<workerCount {
            var thread = pthread_t()
            let pool = Unmanaged.passRetained(self)
            let status = pthread_create(
                &thread, nil,
                { argument in
                    let pool = Unmanaged<ThreadPool>.fromOpaque(argument!).takeRetainedValue()
                    _ = shims_enter_compute()
                    shims_set_thread_slot(Int32(SHIMS_SLOT_IN_TILE), argument)
                    pool.workerLoop()
                    return nil
                }, pool.toOpaque())
            guard status == 0 else {
                pool.release()
                break
            }
            pthread_detach(thread)
        }
    }

    /// Lets the workers end; a loop that is running is finished by the thread that asked for it.
    func stop() {
        pthread_mutex_lock(mutex)
        stopping.store(true, ordering: .sequentiallyConsistent)
        pthread_cond_broadcast(wake)
        pthread_mutex_unlock(mutex)
    }
}
