import GradAccum
import XCTest

/// An embedding whose table is used elsewhere too adds to the rows that it meets only, and changes no bit by it.
final class TiedEmbeddingTests: XCTestCase {
    /// A table [rows, columns] with an embedding and a head, for micro-batches of `tokens` tokens each.
    private struct Model {
        let rows: Int
        let columns: Int
        let tokens: Int

        func table() throws -> Tensor {
            let table = try Tensor.zeros([rows, columns])
            try table.fillNormal(standardDeviation: 0.1, seed: 3)
            return table
        }

        /// The loss of samples with tokens from all over the table; `embedding` and `head` may be the same tensor.
        func loss(
            _ embedding: Tensor, _ head: Tensor, samples: Range<Int>, checkpointing: Bool = false
        ) throws -> Tensor {
            let picked = samples.flatMap { sample in
                (0..<tokens).map { Int64((sample * 7919 + $0 * $0 * 31 + $0) % rows) }
            }
            let indices = try Tensor(indices: picked, shape: [samples.count, tokens])
            let targets = try Tensor(indices: picked.map { ($0 + 1) % Int64(rows) }, shape: [samples.count, tokens])
            let block = { (_: [Tensor]) throws(GAError) in try embedding.embedding(indices).gelu(.tanh) }
            let x = try checkpointing ? checkpoint([], block) : block([])
            return try x.linearCrossEntropy(head, targets)
        }
    }

    private func bits(_ tensor: Tensor) throws -> [UInt32] { try tensor.values().map(\.bitPattern) }

    // Rows that cross the pieces of a step, rows longer than a piece, and more rows than a chunk has.
    private let models = [
        Model(rows: 37, columns: 12, tokens: 5), Model(rows: 1000, columns: 77, tokens: 3),
        Model(rows: 3, columns: 40_000, tokens: 2), Model(rows: 5503, columns: 112, tokens: 1000),
    ]

    func testTheBitsAreThoseOfTwoDenseGradientsAddedUp() throws {
        for model in models {
            let tied = try Accumulator(Optimizer([model.table()], AdamW(learningRate: 1e-2)), .init(maxGradNorm: 0.1))
            let added = try Accumulator(Optimizer([model.table()], AdamW(learningRate: 1e-2)), .init(maxGradNorm: 0.1))
            let (w, reference) = (tied.optimizer.parameters[0], added.optimizer.parameters[0])
            for window in 0..<3 {
                let apart = try Accumulator(Optimizer([copy(reference), copy(reference)], SGD()))
                let untied = apart.optimizer.parameters
                for sample in [0..<1, 1..<3, 3..<4] {
                    let samples = (4 * window + sample.lowerBound)..<(4 * window + sample.upperBound)
                    try tied.accumulate(try model.loss(w, w, samples: samples), weight: 2)
                    try apart.accumulate(try model.loss(untied[0], untied[1], samples: samples), weight: 2)
                }
                let sum = try (apart.accumulatedGradient(0) + apart.accumulatedGradient(1))
                XCTAssertEqual(try bits(tied.accumulatedGradient(0)), try bits(sum), "\(model), window \(window)")

                try added.accumulate(gradients: [UnsafeRawPointer(sum.data)], loss: 0, weight: 6)
                let (found, expected) = (try tied.step(), try added.step())
                XCTAssertEqual(found.gradientNorm, expected.gradientNorm)
                XCTAssertEqual(found.outcome, .applied)
                XCTAssertEqual(try bits(w), try bits(reference), "\(model), window \(window)")
            }
        }
    }

    private func copy(_ tensor: Tensor) throws -> Tensor { try Tensor(tensor.values(), shape: tensor.shape) }

    func testAnySplitAndACheckpointAroundTheEmbeddingGiveTheSameBits() throws {
        var generator = SplitMix64(5)
        let model = Model(rows: 101, columns: 140, tokens: 9)
        let samples = 7
        func gradient(_ split: [Range<Int>], threads: Int, checkpointing: Bool) throws -> [UInt32] {
            try withThreads(threads) {
                let accumulator = try Accumulator(Optimizer([model.table()], SGD()))
                let w = accumulator.optimizer.parameters[0]
                for range in split {
                    let loss = try model.loss(w, w, samples: range, checkpointing: checkpointing)
                    try accumulator.accumulate(loss, weight: Double(range.count))
                }
                return try bits(accumulator.accumulatedGradient(0))
            }
        }
        let whole = try gradient([0..<samples], threads: 1, checkpointing: false)
        for threads in 1...4 {
            for split in [(0..<samples).map { $0..<($0 + 1) }, randomSplit(samples, &generator)] {
                for checkpointing in [false, true] {
                    XCTAssertEqual(
                        whole, try gradient(split, threads: threads, checkpointing: checkpointing),
                        "\(split) on \(threads) threads, checkpointing \(checkpointing)")
                }
            }
        }
    }

    func testFreshGradientsAreThoseOfAnAccumulator() throws {
        let model = models[1]
        let accumulator = try Accumulator(Optimizer([model.table()], SGD()))
        let w = accumulator.optimizer.parameters[0]
        try accumulator.accumulate(try model.loss(w, w, samples: 0..<3), weight: 3)
        let fresh = try model.loss(w, w, samples: 0..<3, checkpointing: true).gradients(of: [w])[0]
        XCTAssertEqual(try bits(fresh), try bits(accumulator.accumulatedGradient(0)))
    }

    /// A table of ones [4, 3], whose gradients are counts.
    private func counting() throws -> (Accumulator, Tensor) {
        let table = try Tensor([Float](repeating: 1, count: 12), shape: [4, 3])
        return (try Accumulator(Optimizer([table], SGD(learningRate: 1))), table)
    }

    private func indices(_ values: Int64...) throws -> Tensor { try Tensor(indices: values, shape: [values.count]) }

    func testMicroBatchesMayUseTheTableInDifferentWays() throws {
        let (accumulator, w) = try counting()
        for _ in 0..<3 {
            try w.fill(1)
            try accumulator.accumulate(try w.embedding(indices(1, 1, 3)).sum(), weight: 1)
            try accumulator.accumulate(try w.embedding(indices(0, 1)).linear(w).sum(), weight: 1)
            try accumulator.accumulate(try w.embedding(indices(2)).sum(), weight: 1)
            try accumulator.accumulate(try w.sum(), weight: 1)
            // The head adds the number of rows to those of its tokens, and the number of tokens to every row.
            let expected: [Float] = [0 + 4, 2 + 4, 1 + 0, 1 + 0].map { $0 + 2 + 1 }
            let counts = expected.flatMap { [$0, $0, $0] }
            XCTAssertEqual(try accumulator.accumulatedGradient(0).values(), counts)
            XCTAssertEqual(
                try accumulator.step().gradientNorm, counts.reduce(0) { $0 + Double($1 * $1) }.squareRoot() / 4,
                accuracy: 1e-12)
            XCTAssertEqual(try w.values(), counts.map { 1 - $0 / 4 })
        }
    }

    func testTheRowsAreEnoughWhereNothingElseWasAdded() throws {
        let (accumulator, w) = try counting()
        // What an earlier window left in the memory of the head must not be seen.
        try accumulator.accumulate(try w.embedding(indices(0, 1)).linear(w).sum(), weight: 1)
        _ = try accumulator.step()
        try w.fill(1)
        let nothing = try Tensor([], shape: [0, 3]).linear(w).sum()
        try accumulator.accumulate(try w.embedding(indices(3, 1, 3)).sum() + nothing, weight: 1)
        let counts: [Float] = [0, 0, 0, 1, 1, 1, 0, 0, 0, 2, 2, 2]
        XCTAssertEqual(try accumulator.accumulatedGradient(0).values(), counts)
        XCTAssertEqual(try accumulator.step().gradientNorm, 15.0.squareRoot())
        XCTAssertEqual(try w.values(), counts.map { 1 - $0 })
    }

    func testViewsOfTheTableAddToTheirRows() throws {
        let values = (0..<36).map { Float($0 * 5 % 7) }
        typealias View = (Tensor) throws -> Tensor
        let views: [View] = [
            { try $0.reshaped([12, 3]) }, { try $0.reshaped([12, 3]).sliced(axis: 0, 5..<9) },
            { try $0.reshaped([6, 6]) }, { try $0.reshaped([12, 3]).transposed() },
            { try $0.reshaped([6, 6]).sliced(axis: 1, 1..<4) }, { try $0.sliced(axis: 0, 2..<3).reshaped([4, 3]) },
            { try $0.reshaped([36, 1]) },
        ]
        for (position, view) in views.enumerated() {
            func gradient(_ loss: (Tensor) throws -> Tensor) throws -> [Float] {
                let leaf = try Tensor(values, shape: [3, 4, 3])
                let accumulator = try Accumulator(Optimizer([leaf], SGD()))
                try accumulator.accumulate(try loss(leaf), weight: 1)
                return try accumulator.accumulatedGradient(0).values()
            }
            let picked = try indices(1, 0, 1)
            let squares = { (x: Tensor) throws in try (x * x).sum() }
            let alone = try gradient { try squares(try view($0).embedding(picked)) }
            let both = try gradient { try squares(try view($0).embedding(picked)) + squares(try view($0)) + $0.sum() }
            let rest = try gradient { try squares(try view($0)) + $0.sum() }
            XCTAssertEqual(both, zip(alone, rest).map { $0 + $1 }, "view \(position)")
        }
    }

    func testOnlyTheRowsThatWereMetTakeMemory() throws {
        let model = Model(rows: 40_000, columns: 64, tokens: 20)
        let bytes = model.rows * model.columns * 4
        let accumulator = try Accumulator(Optimizer([model.table()], SGD()))
        let w = accumulator.optimizer.parameters[0]
        func window(_ microBatches: Int) throws {
            for sample in 0..<microBatches {
                try accumulator.accumulate(try model.loss(w, w, samples: sample..<(sample + 1)), weight: 20)
            }
        }
        let before = Runtime.memoryUsage.liveBytes
        Runtime.resetPeakMemory()
        try window(3)
        let logits = model.tokens * model.rows * 4
        XCTAssertLessThan(Runtime.memoryUsage.peakBytes - before, bytes + logits + bytes / 2)

        let first = try bits(accumulator.accumulatedGradient(0))
        let (calls, live) = (Runtime.memoryUsage.allocatorCalls, Runtime.memoryUsage.liveBytes)
        for _ in 0..<3 {
            try accumulator.zero()
            XCTAssert(try accumulator.accumulatedGradient(0).values().allSatisfy { $0 == 0 })
            try window(3)
            XCTAssertEqual(try bits(accumulator.accumulatedGradient(0)), first)
        }
        try window(61)
        _ = try accumulator.step()
        try window(2)
        XCTAssertEqual(Runtime.memoryUsage.allocatorCalls, calls)
        XCTAssertEqual(Runtime.memoryUsage.liveBytes, live)
    }

    func testAPlaceThatAWindowDidNotUseIsFreed() throws {
        let model = Model(rows: 2000, columns: 64, tokens: 6)
        let accumulator = try Accumulator(Optimizer([model.table()], SGD()))
        let w = accumulator.optimizer.parameters[0]
        func live(_ loss: Tensor) throws -> Int {
            try accumulator.accumulate(loss, weight: 1)
            _ = try accumulator.step()
            return Runtime.memoryUsage.liveBytes
        }
        let single = try live(try w.sum())
        XCTAssertGreaterThan(try live(try model.loss(w, w, samples: 0..<1)), single)
        XCTAssertEqual(try live(try w.sum()), single)
    }
}
