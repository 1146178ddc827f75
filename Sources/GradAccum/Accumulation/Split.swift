/// A batch cut into micro-batches: ranges of consecutive samples, in their order, so that an update has the same bits as
/// with any other split.
public struct Split: RandomAccessCollection, Sendable {
    private enum Plan {
        /// Each of `size` samples, and of one more the first `larger`.
        case even(size: Int, larger: Int)
        /// Where they begin.
        case starts([Int])
    }

    private let plan: Plan
    public let samples: Int
    public let count: Int

    /// `microBatches` of sizes that differ by 1 at most, the larger ones first.
    public init(samples: Int, microBatches: Int) throws(GAError) {
        try Split.require(samples)
        guard (1...samples).contains(microBatches) else {
            throw GAError(
                .invalidArgument,
                "split: micro_batches is \(microBatches): it must be in 1 ... \(samples), the number of samples")
        }
        let (size, larger) = samples.quotientAndRemainder(dividingBy: microBatches)
        plan = .even(size: size, larger: larger)
        self.samples = samples
        count = microBatches
    }

    /// Micro-batches of `size` samples, and a smaller one at the end if that does not divide the batch.
    public init(samples: Int, size: Int) throws(GAError) {
        try Split.require(samples)
        guard size >= 1 else {
            throw GAError(.invalidArgument, "split: size is \(size): it must be at least 1")
        }
        plan = .even(size: size, larger: 0)
        self.samples = samples
        count = (samples - 1) / size + 1
    }

    /// Micro-batches of as many samples as fit a budget of tokens; see ``forEachStart(lengths:tokenBudget:isPadded:_:)``.
    public init(lengths: [Int64], tokenBudget: Int, isPadded: Bool = false) throws(GAError) {
        var starts: [Int] = []
        try lengths.withUnsafeBufferPointer { (lengths) throws(GAError) in
            try Split.forEachStart(lengths: lengths, tokenBudget: tokenBudget, isPadded: isPadded) { starts.append($0) }
        }
        plan = .starts(starts)
        samples = lengths.count
        count = starts.count
    }

    public var startIndex: Int { 0 }
    public var endIndex: Int { count }
    public subscript(index: Int) -> Range<Int> { start(index)..<(index + 1 == count ? samples : start(index + 1)) }

    private func start(_ index: Int) -> Int {
        switch plan {
        case .even(let size, let larger): index * size + Swift.min(index, larger)
        case .starts(let starts): starts[index]
        }
    }

    /// Calls `body` with the first sample of each micro-batch, where each holds as many as fit the budget.
    ///
    /// - Parameter lengths: the tokens of each sample.
    /// - Parameter isPadded: whether samples are padded to the longest of their micro-batch, and all of it counts.
    /// - Throws: `invalidArgument` for an empty batch, a bad budget, or a length that is negative or above the budget.
    public static func forEachStart(
        lengths: UnsafeBufferPointer<Int64>, tokenBudget: Int, isPadded: Bool, _ body: (Int) -> Void
    ) throws(GAError) {
        try require(lengths.count)
        guard tokenBudget >= 1 else {
            throw GAError(.invalidArgument, "split: token_budget is \(tokenBudget): it must be at least 1")
        }
        for (index, length) in lengths.enumerated() where length < 0 || length > tokenBudget {
            throw GAError(
                .invalidArgument,
                "split: lengths[\(index)] is \(length): it must be in 0 ... \(tokenBudget), the token_budget: cut the "
                    + "sample, or raise the budget")
        }
        var (start, tokens, longest) = (0, 0, 0)
        for (index, length) in lengths.enumerated() {
            let newLongest = Swift.max(longest, Int(length))
            // Written so that nothing overflows: tokens and lengths are at most the budget.
            let fits =
                isPadded
                ? newLongest == 0 || index - start + 1 <= tokenBudget / newLongest
                : tokens <= tokenBudget - Int(length)
            if index == 0 || !fits {
                body(index)
                (start, tokens, longest) = (index, Int(length), Int(length))
            } else {
                (tokens, longest) = (tokens + Int(length), newLongest)
            }
        }
    }

    private static func require(_ samples: Int) throws(GAError) {
        guard samples >= 1 else {
            throw GAError(.invalidArgument, "split: samples is \(samples): a batch has at least 1")
        }
    }
}
