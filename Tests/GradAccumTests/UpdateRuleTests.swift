import GradAccum
import XCTest

/// Rules of the caller.
final class UpdateRuleTests: XCTestCase {
    /// Momentum, element by element.
    private struct HeavyBall: ElementwiseRule {
        static var name: StaticString { "heavy ball" }
        var learningRate = 0.5
        var weightDecay = 0.0
        var slotNames: [String] { ["velocity"] }

        func validate() throws(GAError) { try requireLearningRate() }

        func step(_ update: Update) -> Step {
            {
                [rate = Float(learningRate), gradientScale = update.gradientScale]
                parameter, gradient, slots, start, count in
                for i in start..<(start + count) {
                    slots[0][i] = 0.5 * slots[0][i] + gradientScale * gradient[i]
                    parameter[i] -= rate * slots[0][i]
                }
            }
        }
    }

    /// A step of a fixed length against the gradient of each parameter, and what a test wants to do in it.
    private struct Normalized: UpdateRule {
        static var name: StaticString { "normalized" }
        var learningRate = 1.0
        var weightDecay = 0.0
        var before: (Update) throws(GAError) -> Void = { _ in }
        var after: (Update) throws(GAError) -> Void = { _ in }

        func slots(ofParameter index: Int, shape: [Int]) -> [Slot] {
            [Slot("calls", .uint8, shape: [1]), Slot("length", shape: [])]
        }

        func validate() throws(GAError) { try requireLearningRate() }

        func apply(_ update: Update) throws(GAError) {
            try before(update)
            let squares = try update.sums { index, range in
                var sum = 0.0
                for i in range {
                    let g = update.gradientScale * update.parameters[index].gradient[i]
                    sum += Double(g * g)
                }
                return [sum, 0]
            }
            for (index, parameter) in update.parameters.enumerated() {
                let length = squares[index][0].squareRoot()
                parameter.slots[0].assumingMemoryBound(to: UInt8.self).pointee += 1
                parameter.floats(1).pointee = Float(length)
                for i in 0..<parameter.count {
                    let g = update.gradientScale * parameter.gradient[i]
                    parameter.values[i] -= Float(learningRate / length) * g
                }
            }
            try after(update)
        }
    }

    private func accumulator(_ parameters: [Tensor], _ rule: some UpdateRule) throws -> Accumulator {
        try Accumulator(Optimizer(parameters, rule))
    }

    private func step(_ accumulator: Accumulator, _ gradients: [Float]?...) throws -> WindowReport {
        let memory = gradients.map { $0.map { UnsafeMutableBufferPointer<Float>.allocate(capacity: $0.count) } }
        defer { for buffer in memory { buffer?.deallocate() } }
        for (buffer, gradient) in zip(memory, gradients) { _ = buffer?.initialize(from: gradient!) }
        try accumulator.accumulate(
            gradients: memory.map { $0.map { UnsafeRawPointer($0.baseAddress!) } }, loss: 0, weight: 2)
        return try accumulator.step()
    }

    func testARuleForElementsWritesOneLoop() throws {
        let p = try Tensor([1, 2], shape: [2])
        let long = try Tensor.zeros([100_000])
        let accumulator = try accumulator([p, long], HeavyBall())
        XCTAssertEqual(accumulator.optimizer.slots(ofParameter: 0), [Slot("velocity", shape: [2])])
        let ones = [Float](repeating: 2, count: 100_000)
        _ = try step(accumulator, [2, 4], ones)
        XCTAssertEqual(try p.values(), [0.5, 1])
        XCTAssertEqual(try step(accumulator, [2, 4], ones).updateCount, 2)
        XCTAssertEqual(try p.values(), [-0.25, -0.5])
        XCTAssert(try long.values().allSatisfy { $0 == -1.25 })
    }

    func testARuleForParametersSeesThemWhole() throws {
        let p = try Tensor([1, 2], shape: [1, 2])
        let q = try Tensor([0], shape: [])
        let accumulator = try accumulator([p, q], Normalized())
        XCTAssertEqual(
            accumulator.optimizer.slots(ofParameter: 1), [Slot("calls", .uint8, shape: [1]), Slot("length", shape: [])])
        _ = try step(accumulator, [6, 8], nil)
        XCTAssertEqual(try p.values()[0], 0.4, accuracy: 1e-6)
        XCTAssertEqual(try p.values()[1], 1.2, accuracy: 1e-6)
        XCTAssertEqual(try q.values(), [0], "without a gradient there is no update")
        _ = try step(accumulator, [0, 8], [-2])
        XCTAssertEqual(try q.values(), [1])
    }

    func testARuleThatFailsEndsTheWindowUncounted() throws {
        let p = try Tensor([1, 2], shape: [2])
        var rule = Normalized()
        nonisolated(unsafe) var fails = true
        rule.before = { _ throws(GAError) in
            if fails { throw GAError(.unsupported, "normalized: not today") }
        }
        let accumulator = try accumulator([p], rule)
        assertThrows(.unsupported, naming: "not today") { _ = try step(accumulator, [1, 1]) }
        XCTAssertEqual(try p.values(), [1, 2])
        assertThrows(.state, naming: "empty") { _ = try accumulator.step() }
        fails = false
        let report = try step(accumulator, [0, 4])
        XCTAssertEqual(report.updateCount, 1)
        XCTAssertEqual(report.microBatches, 1)
        XCTAssertEqual(try p.values(), [1, 1])
    }

    func testARuleMaySetTheNextLearningRateButNotStep() throws {
        let p = try Tensor([0], shape: [1])
        var rule = Normalized()
        weak var owner: Accumulator?
        nonisolated(unsafe) var refused = false
        rule.after = { _ throws(GAError) in
            try owner!.optimizer.setLearningRate(0.5)
            do throws(GAError) {
                _ = try owner!.step()
            } catch {
                refused = error.kind == .state
            }
        }
        let accumulator = try accumulator([p], rule)
        owner = accumulator
        XCTAssertEqual(try step(accumulator, [3]).learningRate, 1)
        XCTAssert(refused)
        XCTAssertEqual(try p.values(), [-1])
        XCTAssertEqual(accumulator.optimizer.updateCount, 1)
        XCTAssertEqual(try step(accumulator, [3]).learningRate, 0.5)
        XCTAssertEqual(try p.values(), [-1.5])
    }

    func testAnUnboundedSlotIsRefused() throws {
        struct Greedy: UpdateRule {
            static var name: StaticString { "greedy" }
            var learningRate = 1.0
            var weightDecay = 0.0
            let shape: [Int]
            func slots(ofParameter index: Int, shape: [Int]) -> [Slot] { [Slot("all", shape: self.shape)] }
            func validate() throws(GAError) {}
            func apply(_ update: Update) throws(GAError) {}
        }
        let p = try Tensor([0], shape: [1])
        assertThrows(.overflow, naming: "shape") { _ = try Optimizer([p], Greedy(shape: [1 << 40, 1 << 40])) }
        assertThrows(.invalidArgument, naming: "shape") { _ = try Optimizer([p], Greedy(shape: [-1])) }
        XCTAssertFalse(p.requiresGrad)
    }
}
