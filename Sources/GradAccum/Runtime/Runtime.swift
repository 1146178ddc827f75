import CShims
import Glibc
import Synchronization

/// What all tensors share: the kernels of this CPU, the threads, and the memory.
public enum Runtime {
    private static let chosen: Result<InstructionSet, GAError> = {
        do throws(GAError) {
            let set = try InstructionSet.chosen()
            _ = try threadsAskedFor()
            pthread_atfork(
                { lockForFork() }, { unlockAfterFork() },
                {
                    poolIsStale.store(true, ordering: .relaxed)
                    unlockAfterFork()
                })
            return .success(set)
        } catch {
            return .failure(error)
        }
    }()

    /// The instruction set in use; the first call decides. Errors: `unsupported` for a bad `GRADACCUM_ISA`.
    public static func instructionSet() throws(GAError) -> InstructionSet { try chosen.get() }

    /// The kernels of ``instructionSet()``; of the baseline where that failed, which no operation gets to see.
    static let kernels: shims_kernel_table = ((try? chosen.get()) ?? .baseline).kernels

    // MARK: Threads

    private static let poolLock = Lock()
    private static let poolIsStale = Atomic<Bool>(false)
    nonisolated(unsafe) private static var pool: ThreadPool?
    nonisolated(unsafe) private static var threadCount =
        (try? threadsAskedFor()) ?? min(Int(shims_available_cpus()), mostThreads)

    public static let mostThreads = 1024

    /// Threads that operations use, the calling one included. It changes no bit of any result.
    public static var numThreads: Int { poolLock.withLock { threadCount } }

    public static func setNumThreads(_ count: Int) throws(GAError) {
        guard (1...mostThreads).contains(count) else {
            throw GAError(.invalidArgument, "count of threads is \(count): it must be in 1 ... \(mostThreads)")
        }
        let old: ThreadPool? = poolLock.withLock {
            guard count != threadCount else { return nil }
            threadCount = count
            defer { pool = nil }
            return poolIsStale.load(ordering: .relaxed) ? nil : pool
        }
        old?.stop()
    }

    /// What the environment variable `GRADACCUM_NUM_THREADS` asks for, nil for nothing.
    private static func threadsAskedFor() throws(GAError) -> Int? {
        guard let value = getenv("GRADACCUM_NUM_THREADS"), value.pointee != 0 else { return nil }
        guard let count = Int(String(cString: value)), (1...mostThreads).contains(count) else {
            throw GAError(
                .unsupported,
                "GRADACCUM_NUM_THREADS is \"\(String(cString: value))\": set it to a number in 1 ... \(mostThreads), or "
                    + "unset it")
        }
        return count
    }

    private static func currentPool() -> ThreadPool {
        poolLock.withLock {
            if poolIsStale.exchange(false, ordering: .relaxed) { pool = nil }
            if let pool { return pool }
            let new = ThreadPool(threadCount: threadCount)
            pool = new
            return new
        }
    }

    /// Runs `body` for the tiles `0 ..< tiles` on the threads of the library, or if the tiles have few `elements` in all,
    /// on the caller's: to wake a thread takes longer than they do. A thread takes `stretch` tiles in a row.
    ///
    /// `body` makes no array and no object: the first of its type is made under a lock of Swift's, which two threads
    /// wait for forever in the child of a `fork()`, as it knows threads by numbers from before.
    static func parallel(
        tiles: Int, elements: Int = .max, stretch: Int = 1, _ body: (Int) throws(GAError) -> Void
    ) throws(GAError) {
        guard tiles > 0 else { return }
        let mode = shims_enter_compute()
        defer { shims_leave_compute(mode) }
        // A single tile needs no pool, and so not its lock either.
        if tiles == 1 || elements <= Pieces.grain {
            for tile in 0..<tiles { try body(tile) }
            return
        }
        try currentPool().run(tiles: (tiles + stretch - 1) / stretch) { (run, _) throws(GAError) in
            for tile in (run * stretch)..<min((run + 1) * stretch, tiles) { try body(tile) }
        }
    }

    /// The same with `scratch` floats of uninitialised memory for each tile that runs at the time.
    static func parallel(
        tiles: Int, scratch: Int, _ body: (Int, UnsafeMutablePointer<Float>) throws(GAError) -> Void
    ) throws(GAError) {
        guard tiles > 0 else { return }
        let mode = shims_enter_compute()
        defer { shims_leave_compute(mode) }
        // A part ends with a cache line and a vector more, so that no two share one.
        let part = scratch == 0 ? 0 : (scratch + 31) & ~15
        if tiles == 1 || ThreadPool.isInTile {
            let memory = try Storage(floatCount: part)
            for tile in 0..<tiles { try body(tile, memory.floats) }
            return
        }
        let pool = currentPool()
        // Allocated for as many as may run, not by them, so that the peak does not depend on who is fast.
        let memory = try Storage(floatCount: part * pool.threadCount)
        try pool.run(tiles: tiles) { (tile, worker) throws(GAError) in try body(tile, memory.floats + worker * part) }
    }

    /// Cuts `count` elements into pieces of `grain` and runs `body(start, size)` for each.
    static func parallel(count: Int, grain: Int, _ body: (Int, Int) throws(GAError) -> Void) throws(GAError) {
        try parallel(tiles: (count + grain - 1) / grain) { tile throws(GAError) in
            let start = tile * grain
            try body(start, min(grain, count - start))
        }
    }

    // MARK: Memory

    /// What tensor memory is used for.
    public static var memoryUsage: MemoryUsage { Arena.shared.memoryUsage() }

    /// Sets the peak to what is live now.
    public static func resetPeakMemory() { Arena.shared.resetPeak() }

    /// Gives memory that is kept for reuse, and not in use, back to the allocator.
    public static func trimMemory() { Arena.shared.trim() }

    /// Makes `allocator` the source of tensor memory. Errors: `state` while memory of the previous one is in use.
    public static func setAllocator(_ allocator: Allocator) throws(GAError) {
        try Arena.shared.setAllocator(allocator)
    }

    // MARK: Fork

    /// Locks that another thread could hold while the process forks, in the order in which they are taken.
    nonisolated(unsafe) private static var forkLocks = [poolLock, Arena.shared.lock]

    /// Adds a lock of a layer above, which is taken before those of this one.
    package static func holdDuringFork(_ lock: Lock) { forkLocks.insert(lock, at: 0) }

    private static func lockForFork() { for lock in forkLocks { lock.lock() } }
    private static func unlockAfterFork() { for lock in forkLocks.reversed() { lock.unlock() } }
}
