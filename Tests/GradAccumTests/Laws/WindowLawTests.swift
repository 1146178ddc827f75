import GradAccum
import XCTest

/// Laws of the window over random lives of it, for every optimizer and every way to clip and to add, to the last bit.
final class WindowLawTests: LawTestCase {
    /// Parameters of different shapes with an optimizer and an accumulator.
    private struct Rig {
        static let shapes = [[3, 5], [4], [], [2, 3, 2], [1, 1]]
        let parameters: [Tensor]
        let accumulator: Accumulator

        init(_ row: OptimizerCase, _ options: Accumulator.Options) throws {
            parameters = try Rig.shapes.enumerated().map { index, shape in
                let tensor = try Tensor.zeros(shape)
                try tensor.fillUniform(low: 1, high: 2, seed: UInt64(index))
                return tensor
            }
            accumulator = try Accumulator(try row.make(parameters), options)
        }

        func add(_ microBatch: MicroBatch) throws {
            let buffers = microBatch.gradients.map { values -> UnsafeMutableBufferPointer<Float>? in
                guard let values else { return nil }
                let buffer = UnsafeMutableBufferPointer<Float>.allocate(capacity: values.count)
                _ = buffer.initialize(from: values)
                return buffer
            }
            defer { for buffer in buffers { buffer?.deallocate() } }
            try accumulator.accumulate(
                gradients: buffers.map { $0.map { UnsafeRawPointer($0.baseAddress!) } }, loss: microBatch.loss,
                weight: microBatch.weight)
        }

        var bits: [[UInt32]] {
            get throws { try parameters.map { try $0.values().map(\.bitPattern) } }
        }
    }

    /// Gradients that are small multiples of 1/8, so that their sums are exact.
    private struct MicroBatch {
        var gradients: [[Float]?]
        var loss: Double
        var weight: Double

        init(_ generator: inout SplitMix64) {
            gradients = Rig.shapes.map { shape in
                guard Int.random(in: 0..<6, using: &generator) > 0 else { return nil }
                return (0..<shape.reduce(1, *)).map { _ in Float(Int.random(in: -64...64, using: &generator)) / 8 }
            }
            loss = Double(Int.random(in: 0..<100, using: &generator)) / 8
            weight = [0.5, 1, 2, 3, 7, 128].randomElement(using: &generator)!
        }

        /// This one with others added to it.
        func joined(with others: [MicroBatch]) -> MicroBatch {
            others.reduce(into: self) { sum, other in
                sum.gradients = zip(sum.gradients, other.gradients).map { a, b in
                    guard let a, let b else { return a ?? b }
                    return zip(a, b).map(+)
                }
                sum.loss += other.loss
                sum.weight += other.weight
            }
        }
    }

    private static let ways: [Accumulator.Options] = [
        .init(), .init(maxGradNorm: 1), .init(maxGradValue: 0.75), .init(agcClipping: 0.05), .init(isIsolated: true),
    ]

    /// Runs `body` with every optimizer and way, and the windows of a random life.
    private func forEachLife(
        _ count: Int, seed: UInt64,
        _ body: (OptimizerCase, Accumulator.Options, [[MicroBatch]], inout SplitMix64) throws -> Void
    ) throws {
        for (number, row) in OptimizerCase.all.enumerated() {
            for (way, options) in Self.ways.enumerated() {
                for life in 0..<(count * Self.factor) {
                    var generator = SplitMix64(seed &+ UInt64(10_000 * life + 100 * number + way))
                    let windows = (0..<Int.random(in: 1...5, using: &generator)).map { _ in
                        (0..<Int.random(in: 1...4, using: &generator)).map { _ in MicroBatch(&generator) }
                    }
                    ran()
                    try body(row, options, windows, &generator)
                }
            }
        }
    }

    func testAWindowIsOneBatchHoweverManyCallsItTakes() throws {
        test(of: .trueWeights, .oneClock)
        try forEachLife(20, seed: 1) { row, options, windows, _ in
            let many = try Rig(row, options)
            let single = try Rig(row, options)
            for (number, window) in windows.enumerated() {
                for microBatch in window { try many.add(microBatch) }
                try single.add(window[0].joined(with: Array(window.dropFirst())))
                let (a, b) = (try many.accumulator.step(), try single.accumulator.step())
                XCTAssertEqual(a.weight, b.weight, row.name)
                XCTAssertEqual(a.loss, b.loss, row.name)
                XCTAssertEqual(a.gradientNorm, b.gradientNorm, row.name)
                XCTAssertEqual(a.clipFactor, b.clipFactor, row.name)
                XCTAssertEqual(a.updateCount, number + 1, row.name)
                XCTAssertEqual(b.updateCount, number + 1, row.name)
            }
            XCTAssertEqual(try many.bits, try single.bits, "\(row.name) \(options)")
        }
    }

    func testWhatIsDroppedLeavesNoTrace() throws {
        test(of: .noTrace)
        try forEachLife(20, seed: 2) { row, options, windows, generator in
            let clean = try Rig(row, options)
            let troubled = try Rig(row, options)
            for (number, window) in windows.enumerated() {
                let before = try troubled.bits
                try drop(from: troubled, updates: number, &generator)
                XCTAssertEqual(try troubled.bits, before, "\(row.name) \(options)")
                for microBatch in window {
                    try clean.add(microBatch)
                    try troubled.add(microBatch)
                    if Bool.random(using: &generator) {
                        var bad = microBatch
                        bad.loss = [.nan, .infinity].randomElement(using: &generator)!
                        if options.isIsolated {
                            try troubled.add(bad)
                        } else {
                            assertThrows(.nonFinite, naming: "loss") { try troubled.add(bad) }
                        }
                    }
                }
                let (a, b) = (try clean.accumulator.step(), try troubled.accumulator.step())
                XCTAssertEqual(a.loss, b.loss, row.name)
                XCTAssertEqual(a.gradientNorm, b.gradientNorm, row.name)
                XCTAssertEqual(a.updateCount, b.updateCount, row.name)
            }
            XCTAssertEqual(try clean.bits, try troubled.bits, "\(row.name) \(options)")
        }
    }

    /// A window of each kind that must be as if it had not been.
    private func drop(from rig: Rig, updates: Int, _ generator: inout SplitMix64) throws {
        var microBatch = MicroBatch(&generator)
        switch Int.random(in: 0..<4, using: &generator) {
        case 0:
            let index = Int.random(in: 0..<Rig.shapes.count, using: &generator)
            var values = [Float](repeating: 1, count: Rig.shapes[index].reduce(1, *))
            values[values.count - 1] = [.nan, .infinity, -.infinity].randomElement(using: &generator)!
            microBatch.gradients[index] = values
            try rig.add(microBatch)
            let report = try rig.accumulator.step()
            XCTAssertEqual(report.outcome, .skippedNonFinite)
            XCTAssertEqual(report.updateCount, updates)
        case 1:
            microBatch.weight = 0
            try rig.add(microBatch)
            let report = try rig.accumulator.step()
            XCTAssertEqual(report.outcome, .skippedZeroWeight)
            XCTAssertEqual(report.updateCount, updates)
        case 2 where rig.accumulator.options.isIsolated:
            try rig.accumulator.beginMicroBatch()
            try rig.add(microBatch)
            try rig.accumulator.abortMicroBatch()
            XCTAssertEqual(try rig.accumulator.step().outcome, .skippedZeroWeight)
        case 2:
            try rig.add(microBatch)
            XCTAssertEqual(try rig.accumulator.endData(.drop).outcome, .dropped)
        default:
            try rig.add(microBatch)
            try rig.accumulator.zero()
        }
    }

    func testAnySplitOfABatchWithEveryOptimizer() throws {
        test(of: .splitInvariance)
        for (number, row) in OptimizerCase.all.enumerated() {
            // In isolated mode, the cut decides what is rounded.
            for (way, options) in Self.ways.enumerated() where !options.isIsolated {
                for life in 0..<(5 * Self.factor) {
                    var generator = SplitMix64(UInt64(3 + 10_000 * life + 100 * number + way))
                    let samples = Int.random(in: 2...9, using: &generator)
                    let text = (0..<(samples * 6)).map { _ in Int64.random(in: 0..<11, using: &generator) }
                    func weights(_ splits: [[Range<Int>]], threads: Int) throws -> [[UInt32]] {
                        try withThreads(threads) {
                            let model = try TinyGPT(vocabulary: 11, layers: 1, channels: 8, heads: 2, time: 5)
                            let accumulator = try Accumulator(try row.make(model.parameters), options)
                            for split in splits {
                                for range in split {
                                    try accumulator.accumulate(
                                        try model.loss(text, samples: range), weight: Double(5 * range.count))
                                }
                                _ = try accumulator.step()
                            }
                            return try model.parameters.map { try $0.values().map(\.bitPattern) }
                        }
                    }
                    let whole = try weights([[0..<samples], [0..<samples]], threads: 1)
                    for threads in 1...2 {
                        ran()
                        let splits = [randomSplit(samples, &generator), randomSplit(samples, &generator)]
                        XCTAssertEqual(
                            whole, try weights(splits, threads: threads), "\(row.name) \(options) \(splits)")
                    }
                }
            }
        }
    }

    func testThePeakDoesNotDependOnTheNumberOfMicroBatches() throws {
        test(of: .flatMemory)
        for row in OptimizerCase.all {
            for options in Self.ways {
                let rig = try Rig(row, options)
                var generator = SplitMix64(4)
                let microBatch = MicroBatch(&generator)
                func peak(_ count: Int) throws -> Int {
                    Runtime.resetPeakMemory()
                    for _ in 0..<count { try rig.add(microBatch) }
                    _ = try rig.accumulator.step()
                    return Int(Runtime.memoryUsage.peakBytes)
                }
                _ = try peak(2)
                let expected = try peak(2)
                let calls = Runtime.memoryUsage.allocatorCalls
                for _ in 0..<(10 * Self.factor) {
                    ran()
                    XCTAssertEqual(
                        try peak(Int.random(in: 1...40, using: &generator)), expected, "\(row.name) \(options)")
                }
                XCTAssertEqual(Runtime.memoryUsage.allocatorCalls, calls, "\(row.name) \(options)")
            }
        }
    }
}
