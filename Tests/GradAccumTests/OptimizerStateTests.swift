import GradAccum
import XCTest

/// State that is saved and loaded, in all rows of the table.
final class OptimizerStateTests: XCTestCase {
    /// An optimizer and its accumulator, with all that reads a clock of the state.
    private func training(
        _ parameters: [Tensor], _ row: OptimizerCase
    ) throws -> (optimizer: Optimizer, accumulator: Accumulator) {
        let optimizer = try row.make(parameters)
        // The loss of all windows is 0, so that every other one drops the factor.
        let plateau = Plateau(gamma: 0.9, patience: 1, cooldown: 1)
        try optimizer.setSchedule(Schedule(.plateau(plateau), warmup: 4, warmupStartFactor: 0.5, clock: .weight))
        try optimizer.setScaling(
            BatchScaling(.squareRoot, baseWeight: 2, keepsBeta2HalfLife: row.rule.followsMomentSteps))
        return (optimizer, try Accumulator(optimizer))
    }

    /// Windows in which one parameter is not touched now and then, and another one is frozen.
    private func train(_ accumulator: Accumulator, _ shapes: [[Int]], updates: Range<Int>) throws {
        for update in updates {
            var values: [[Float]?] = randomGradients(shapes, update: update)
            if update % 2 == 0 { values[0] = nil }
            try accumulator.optimizer.parameters[1].setRequiresGrad(update % 3 != 1)
            try add(values, to: accumulator, weight: Double(1 + update % 3))
            XCTAssertEqual(try accumulator.step().outcome, .applied)
        }
    }

    private func copies(_ tensors: [Tensor]) throws -> [Tensor] {
        try tensors.map { try Tensor($0.values(), shape: $0.shape) }
    }

    func testTrainingGoesOnToTheBit() throws {
        for row in OptimizerCase.all {
            for updates in [0, 1, 5] {
                let parameters = try randomParameters(row.shapes)
                let whole = try training(parameters, row)
                try train(whole.accumulator, row.shapes, updates: 0..<updates)
                let state = try whole.optimizer.saveState()
                XCTAssertEqual(state.count, whole.optimizer.stateByteCount)

                let restored = try copies(parameters)
                let resumed = try training(restored, row)
                // It has come to something else.
                let weights = try copies(parameters)
                try train(resumed.accumulator, row.shapes, updates: 10..<12)
                for (parameter, weight) in zip(restored, weights) {
                    try weight.values().withUnsafeBytes {
                        try parameter.copyIn($0.baseAddress!, byteCount: $0.count)
                    }
                }
                try resumed.optimizer.loadState(state)
                XCTAssertEqual(try resumed.optimizer.saveState(), state, row.name)
                XCTAssertEqual(resumed.optimizer.updateCount, updates)
                XCTAssertEqual(
                    try resumed.optimizer.nextLearningRate(weight: 3), try whole.optimizer.nextLearningRate(weight: 3))

                for accumulator in [whole.accumulator, resumed.accumulator] {
                    try train(accumulator, row.shapes, updates: updates..<updates + 5)
                }
                XCTAssertEqual(try bits(of: restored), try bits(of: parameters), "\(row.name) after \(updates) updates")
                XCTAssertEqual(try resumed.optimizer.saveState(), try whole.optimizer.saveState(), row.name)
            }
        }
    }

    func testAStateIsWhatUpdatesHaveMadeAndNothingElse() throws {
        for row in OptimizerCase.all {
            let (optimizer, accumulator) = try training(try randomParameters(row.shapes), row)
            try train(accumulator, row.shapes, updates: 0..<2)
            let state = try optimizer.saveState()
            // A window in progress, and one that is skipped.
            var bad = randomGradients(row.shapes, update: 7)
            bad[3][1] = .infinity
            try add(bad, to: accumulator, weight: 1)
            XCTAssertEqual(try optimizer.saveState(), state)
            XCTAssertEqual(try accumulator.step().outcome, .skippedNonFinite)
            XCTAssertEqual(try optimizer.saveState(), state, row.name)
            let before = Runtime.memoryUsage
            try optimizer.loadState(state)
            XCTAssertEqual(Runtime.memoryUsage.allocatorCalls, before.allocatorCalls)
            try train(accumulator, row.shapes, updates: 2..<3)
            XCTAssertNotEqual(try optimizer.saveState(), state, row.name)
        }
    }

    /// Whatever the bytes, an optimizer has them as its state afterwards or what it had before.
    private func expectRefused(
        _ bytes: [UInt8], by optimizer: Optimizer, unlessTaken: Bool = false, _ what: String
    ) throws {
        let before = try optimizer.saveState()
        do {
            try optimizer.loadState(bytes)
            XCTAssert(unlessTaken, "\(what) was taken")
            XCTAssertEqual(try optimizer.saveState(), bytes, what)
            try optimizer.loadState(before)
        } catch {
            XCTAssert(error.message.hasPrefix("load_state: "), what)
            XCTAssertEqual(try optimizer.saveState(), before, what)
        }
    }

    func testBytesThatAreNoStateAreRefused() throws {
        let shapes = [[3], [2, 2], [70]]
        let row = OptimizerCase.all.first { $0.name == "adamw8bit" }!
        let (optimizer, accumulator) = try training(try randomParameters(shapes), row)
        try train(accumulator, shapes, updates: 0..<3)
        let state = try optimizer.saveState()
        try train(accumulator, shapes, updates: 3..<5)
        for count in state.indices {
            var part = Array(state[..<count])
            try expectRefused(part, by: optimizer, "the first \(count) bytes")
            // One that has the right size.
            guard count >= 24 else { continue }
            for byte in 0..<8 { part[16 + byte] = UInt8(truncatingIfNeeded: count >> (8 * byte)) }
            try expectRefused(part, by: optimizer, "the first \(count) bytes as the whole")
        }
        try expectRefused(state + [0], by: optimizer, "another byte")
        // The first 40 bytes are magic, version, size and rule.
        for offset in state.indices {
            for change: UInt8 in [1, 0x10, 0x80, 0xff] {
                var flipped = state
                flipped[offset] ^= change
                try expectRefused(
                    flipped, by: optimizer, unlessTaken: offset >= 48, "byte \(offset) changed by \(change)")
            }
        }
        // Words that are counts, sizes or flags somewhere.
        for offset in stride(from: 0, to: state.count, by: 8) {
            for word in [UInt64(bitPattern: -1), 1 << 63, 1 << 62, UInt64(Int.max), 1 << 54, 2, 0x7ff8 << 48] {
                var changed = state
                for byte in 0..<8 { changed[offset + byte] = UInt8(truncatingIfNeeded: word >> (8 * UInt64(byte))) }
                try expectRefused(
                    changed, by: optimizer, unlessTaken: offset >= 48, "word \(offset / 8) as \(word)")
            }
        }
        // Whatever it has taken in between.
        try optimizer.loadState(state)
        try train(accumulator, shapes, updates: 3..<5)
    }

    func testAStateOfAnotherOptimizerIsRefusedInItsWords() throws {
        func state(_ shapes: [[Int]], _ rule: some UpdateRule) throws -> [UInt8] {
            try Optimizer(try randomParameters(shapes), rule).saveState()
        }
        let optimizer = try Optimizer(try randomParameters([[3, 4], [5]]), AdamW())
        let before = try optimizer.saveState()
        var newer = before
        newer[8] = 2
        let others: [([UInt8], GAError.Kind, String)] = [
            (try state([[3, 4], [5]], Adam()), .invalidArgument, "\"adam\" as the rule, and the optimizer \"adamw\""),
            (try state([[3, 4]], AdamW()), .invalidArgument, "1 as the number of parameters, and the optimizer 2"),
            (try state([[4, 3], [5]], AdamW()), .shape, "[4, 3] for parameters[0], and the optimizer [3, 4]"),
            (try state([[3, 4], [5, 1]], AdamW()), .shape, "[5, 1] for parameters[1], and the optimizer [5]"),
            (newer, .unsupported, "version 2, and this library reads version 1"),
            (
                before.dropLast(), .invalidArgument,
                "size_bytes is \(before.count - 1), and the state has \(before.count)"
            ),
            (Array(before.reversed()), .invalidArgument, "does not begin with \"ga_optim\""),
        ]
        for (bytes, kind, words) in others {
            XCTAssertThrowsError(try optimizer.loadState(bytes)) { error in
                XCTAssertEqual((error as? GAError)?.kind, kind, words)
                XCTAssert("\(error)".contains(words), "\(error)")
            }
            XCTAssertEqual(try optimizer.saveState(), before)
        }
        // The same rule with other arrays.
        let plain = try Optimizer(try randomParameters([[3]]), SGD())
        XCTAssertThrowsError(try plain.loadState(try state([[3]], SGD(momentum: 0.9)))) {
            XCTAssert("\($0)".contains("1 as the number of slots of parameters[0]"), "\($0)")
        }
        let wide = try Optimizer(try randomParameters([[300]]), AdamW8bit())
        XCTAssertThrowsError(try wide.loadState(try state([[300]], AdamW8bit(minimumSize: 0)))) {
            XCTAssert("\($0)".contains("slots of parameters[0]"), "\($0)")
        }
    }

    func testMomentsOfAWindow() throws {
        let shapes = [[3], [5]]
        let options = Accumulator.Options(normalization: .sum, accumulateInto: .moments)
        let parameters = try randomParameters(shapes)
        let accumulator = try Accumulator(try Optimizer(parameters, AdamW()), options)
        try add(randomGradients(shapes, update: 1), to: accumulator, weight: 1)
        let optimizer = accumulator.optimizer
        for call in [{ _ = try optimizer.saveState() }, { try optimizer.loadState([]) }] as [() throws -> Void] {
            XCTAssertThrowsError(try call()) {
                XCTAssertEqual(($0 as? GAError)?.kind, .state)
                XCTAssert("\($0)".contains("take a step first"), "\($0)")
            }
        }
        // One that is frozen by the step keeps its part of the window, in the state too.
        try parameters[1].setRequiresGrad(false)
        _ = try accumulator.step()
        let state = try optimizer.saveState()
        let restored = try copies(parameters)
        let resumed = try Accumulator(try Optimizer(restored, AdamW()), options)
        try resumed.optimizer.loadState(state)
        for (accumulator, tensors) in [(accumulator, parameters), (resumed, restored)] {
            try tensors[1].setRequiresGrad(true)
            try add(randomGradients(shapes, update: 2), to: accumulator, weight: 1)
            _ = try accumulator.step()
        }
        XCTAssertEqual(try bits(of: restored), try bits(of: parameters))

        let adding = try Accumulator(try Optimizer(try copies(parameters), AdamW()))
        XCTAssertThrowsError(try adding.optimizer.loadState(state)) {
            XCTAssertEqual(($0 as? GAError)?.kind, .state)
        }
        XCTAssertEqual(adding.optimizer.updateCount, 0)
    }

    private struct Nosy: UpdateRule {
        static let name: StaticString = "nosy"
        var learningRate = 0.1
        var weightDecay = 0.0
        let look: () throws(GAError) -> Void

        func slots(ofParameter index: Int, shape: [Int]) -> [Slot] { [] }
        func validate() throws(GAError) {}
        func apply(_ update: Update) throws(GAError) { try look() }
    }

    func testNoStateIsSavedOrLoadedWithinAnUpdate() throws {
        final class Place { var optimizer: Optimizer? }
        for isSaving in [true, false] {
            let place = Place()
            let rule = Nosy { () throws(GAError) in
                if isSaving { _ = try place.optimizer!.saveState() } else { try place.optimizer!.loadState([]) }
            }
            let accumulator = try Accumulator(try Optimizer([try Tensor([1], shape: [1])], rule))
            place.optimizer = accumulator.optimizer
            defer { place.optimizer = nil }
            try add([[1]], to: accumulator, weight: 1)
            XCTAssertThrowsError(try accumulator.step()) { XCTAssertEqual(($0 as? GAError)?.kind, .state) }
        }
    }
}
