/// One update, as a rule sees it: its number, the scale of the gradients, and the parameters that have one.
public struct Update {
    /// A parameter with its gradient and its state: contiguous arrays in row-major order.
    public struct Parameter {
        /// Its place among the optimizer's parameters.
        public let index: Int
        public let shape: [Int]
        public let count: Int
        public let values: UnsafeMutablePointer<Float>
        /// Not scaled yet.
        public let gradient: UnsafePointer<Float>
        /// In the order of ``UpdateRule/slots(ofParameter:shape:)``.
        public let slots: [UnsafeMutableRawPointer]

        /// A slot of float32.
        public func floats(_ slot: Int) -> UnsafeMutablePointer<Float> {
            slots[slot].assumingMemoryBound(to: Float.self)
        }
    }

    /// Which update it is of each of these parameters, from 1: the clock of bias correction.
    public let number: Int
    /// How many updates of the base weight it counts as, 1 unless ``BatchScaling`` keeps the half-life of beta2: the power of
    /// beta2 that second moments keep.
    public let momentSteps: Double
    /// The sum of these over all updates of these parameters: the power of beta2 that bias correction takes from 1.
    public let momentTime: Double
    /// What a rule multiplies every gradient by first: 1 over the weight of the window, times the clip factor.
    public let gradientScale: Float
    public let parameters: [Parameter]
    /// What the rule asked for with ``UpdateRule/workspace(shapes:)``.
    public let workspace: UnsafeMutableBufferPointer<Float>

    /// The same update of some of the parameters.
    public func of(_ isIncluded: (Parameter) -> Bool) -> Update { of(parameters.filter(isIncluded)) }

    func of(_ some: [Parameter]) -> Update {
        Update(
            number: number, momentSteps: momentSteps, momentTime: momentTime, gradientScale: gradientScale,
            parameters: some, workspace: workspace)
    }

    /// Elements of parameters that a rule with several passes goes through together: so few that a pass finds in the cache
    /// what the one before has read, and enough to share out.
    private static let cacheableCount = 1 << 19

    /// Runs `body` for one after the other of the parts that a rule with several passes best takes: whole parameters, some
    /// small ones together.
    public func forEachPart(_ body: (Update) throws(GAError) -> Void) throws(GAError) {
        var first = 0
        while first < parameters.count {
            var (end, count) = (first + 1, parameters[first].count)
            while end < parameters.count && count + parameters[end].count <= Update.cacheableCount {
                count += parameters[end].count
                end += 1
            }
            try body(of(Array(parameters[first..<end])))
            first = end
        }
    }

    /// Runs `body` for pieces of the parameters, on all threads: (place in ``parameters``, elements of it).
    ///
    /// A piece starts at a multiple of 32768 elements. `body` makes no array and no object, on which threads could wait for
    /// each other forever in the child of a `fork()`.
    public func forEachPiece(_ body: (Int, Range<Int>) throws(GAError) -> Void) throws(GAError) {
        try Pieces(parameters.map(\.count)).forEach { (index, start, count) throws(GAError) in
            try body(index, start..<(start + count))
        }
    }

    /// For each of ``parameters``, the sums of what `body` returns for its pieces, which runs as in ``forEachPiece(_:)``.
    ///
    /// They are added in the order of the pieces, so that the number of threads changes no bit.
    public func sums(
        _ body: (Int, Range<Int>) throws(GAError) -> SIMD2<Double>
    ) throws(GAError) -> [SIMD2<Double>] {
        try Pieces(parameters.map(\.count)).sums(body)
    }
}
