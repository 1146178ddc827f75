import GradAccum
import XCTest

/// A checkpoint changes the memory and the time of a graph, and no bit of its gradients.
final class CheckpointTests: XCTestCase {
    func testAModelHasTheSameBitsWithAndWithout() throws {
        for dtype in [DType.float32, .bfloat16, .float16] { try sameBitsWithAndWithout(computingIn: dtype) }
    }

    /// The type is that of the forward pass: backward runs outside of it.
    private func sameBitsWithAndWithout(computingIn dtype: DType) throws {
        let (batch, time) = (3, 19)
        let text = (0..<(batch * (time + 1))).map { Int64($0 * 11 % 23) }
        func gradients(checkpointing: Bool) throws -> ([[UInt32]], peak: Int) {
            let model = try TinyGPT(vocabulary: 23, layers: 6, channels: 24, heads: 2, time: time)
            let accumulator = try Accumulator(Optimizer(model.parameters, AdamW()))
            Runtime.resetPeakMemory()
            let before = Runtime.memoryUsage.liveBytes
            for sample in 0..<batch {
                let loss = try withCompute(dtype) {
                    try model.loss(text, samples: sample..<(sample + 1), checkpointing: checkpointing)
                }
                try accumulator.accumulate(loss, weight: Double(time))
            }
            let bits = try model.parameters.indices.map {
                try accumulator.accumulatedGradient($0).values().map(\.bitPattern)
            }
            return (bits, Runtime.memoryUsage.peakBytes - before)
        }
        let plain = try gradients(checkpointing: false)
        let checkpointed = try gradients(checkpointing: true)
        XCTAssertEqual(plain.0, checkpointed.0)
        XCTAssertLessThan(checkpointed.peak, plain.peak)
    }

    private func leaf(_ values: [Float]) throws -> Tensor {
        let tensor = try Tensor(values, shape: [values.count])
        try tensor.setRequiresGrad(true)
        return tensor
    }

    func testLeavesAsInputsAndAroundTheBlockKeepTheirPlaces() throws {
        let values: [[Float]] = [[0.1, 0.7, -1.3], [1.1, -0.3, 0.9]]
        typealias Block = ([Tensor]) throws(GAError) -> Tensor
        func gradients(_ run: ([Tensor], @escaping Block) throws -> Tensor) throws -> [[Float]] {
            let (a, b) = (try leaf(values[0]), try leaf(values[1]))
            let accumulator = try Accumulator(Optimizer([a, b], SGD()))
            let x = try a * b
            let y = try run([x, a]) { (inputs) throws(GAError) in
                try (inputs[0] * b + inputs[1] * inputs[0]) * b + inputs[0]
            }
            try accumulator.accumulate(try (y * a + x).sum(), weight: 1)
            return [try accumulator.accumulatedGradient(0).values(), try accumulator.accumulatedGradient(1).values()]
        }
        let plain = try gradients { inputs, block in try block(inputs) }
        let nested = try gradients { inputs, block in
            try checkpoint(inputs) { (outer) throws(GAError) in
                try checkpoint(outer, block)
            }
        }
        XCTAssertEqual(plain, try gradients { inputs, block in try checkpoint(inputs, block) })
        XCTAssertEqual(plain, nested)
    }

    func testAnUndeclaredActivationIsRefused() throws {
        let a = try leaf([1, 2])
        let hidden = try a * a
        assertThrows(.invalidArgument, naming: "pass it as one") {
            _ = try checkpoint([a]) { (inputs) throws(GAError) in try inputs[0] * hidden }
        }
    }

    func testAConstantOfTheBlockMustNotChangeBetweenItsRuns() throws {
        let a = try leaf([1, 2])
        let constant = try Tensor([3, 4] as [Float], shape: [2])
        func result() throws -> Tensor {
            try checkpoint([a]) { (inputs) throws(GAError) in try (inputs[0] * constant).gelu() }.sum()
        }
        let stale = try result()
        try constant.copyIn([5, 6] as [Float], byteCount: 8)
        assertThrows(.state, naming: "multiply reads in the block has changed") { _ = try stale.gradients(of: [a]) }
        XCTAssertNoThrow(try result().gradients(of: [a]))
    }

    func testABlockThatIgnoresAnInputGivesItNothing() throws {
        let a = try leaf([1, 2])
        let hidden = try a * a
        let y = try checkpoint([hidden]) { (_) throws(GAError) in try a + a }
        XCTAssertEqual(try y.sum().gradients(of: [a])[0].values(), [2, 2])
    }

    /// Inputs whose gradients are one: the same activation twice, and views that overlap.
    func testInputsThatShareAGradientAddToItInTurn() throws {
        typealias Block = ([Tensor]) throws(GAError) -> Tensor
        typealias Inputs = (Tensor) throws(GAError) -> [Tensor]
        func gradient(
            _ inputs: Inputs, _ block: @escaping Block, checkpointing: Bool, usedBefore: Bool
        ) throws -> [UInt32] {
            let a = try Tensor((0..<12).map { sinf(Float($0)) }, shape: [4, 3])
            try a.setRequiresGrad(true)
            let x = try a * a
            let given = try inputs(x)
            let y = try checkpointing ? checkpoint(given, block) : block(given)
            let loss = try usedBefore ? y.sum() + (x * a).sum() : y.sum()
            return try loss.gradients(of: [a])[0].values().map(\.bitPattern)
        }
        let twice: Inputs = { (x) throws(GAError) in [x, x] }
        let views: Inputs = { (x) throws(GAError) in
            [try x.sliced(axis: 0, 0..<3), x, try x.sliced(axis: 0, 1..<4), try x.sliced(axis: 0, 1..<3).reshaped([6])]
        }
        let cases: [(Inputs, Block)] = [
            (twice, { (inputs) throws(GAError) in try inputs[0] * inputs[1] + inputs[0] }),
            (twice, { (inputs) throws(GAError) in try inputs[1].gelu() }),
            (twice, { (inputs) throws(GAError) in try inputs[1].gelu() - inputs[0] }),
            (views, { (inputs) throws(GAError) in try inputs[2] * inputs[0] - inputs[1].sliced(axis: 0, 0..<3) }),
            (
                views,
                { (inputs) throws(GAError) in
                    try inputs[1].gelu().sum() + (inputs[3] * inputs[3]).sum() + (inputs[0] / inputs[2]).sum()
                }
            ),
            (views, { (inputs) throws(GAError) in try inputs[3].relu() }),
        ]
        for (number, (inputs, block)) in cases.enumerated() {
            for usedBefore in [false, true] {
                let plain = try gradient(inputs, block, checkpointing: false, usedBefore: usedBefore)
                let checkpointed = try gradient(inputs, block, checkpointing: true, usedBefore: usedBefore)
                XCTAssertEqual(plain, checkpointed, "case \(number)")
            }
        }
    }

    func testAnInputMayBeBFloat16() throws {
        let a = try leaf([1, 2, 3])
        func gradient(checkpointing: Bool) throws -> [Float] {
            let x = try (a * a).cast(to: .bfloat16)
            let block: ([Tensor]) throws(GAError) -> Tensor = { (inputs) throws(GAError) in
                try inputs[0].gelu() + inputs[0]
            }
            let y = try checkpointing ? checkpoint([x], block) : block([x])
            return try y.sum().gradients(of: [a])[0].values()
        }
        XCTAssertEqual(try gradient(checkpointing: false), try gradient(checkpointing: true))
    }

    func testTheBlockRunsAgainInTheTypeThatItFirstComputedIn() throws {
        var types: [DType] = []
        let a = try Tensor((0..<12).map { sinf(Float($0)) }, shape: [2, 6])
        let weight = try Tensor((0..<24).map { cosf(Float($0)) }, shape: [4, 6])
        for leaf in [a, weight] { try leaf.setRequiresGrad(true) }
        func gradients(checkpointing: Bool) throws -> [[Float]] {
            let block: ([Tensor]) throws(GAError) -> Tensor = { (inputs) throws(GAError) in
                let y = try inputs[0].linear(weight)
                types.append(y.dtype)
                return try y.cast(to: .float32)
            }
            let y = try Compute.with(.bfloat16) { () throws(GAError) in
                try checkpointing ? checkpoint([a], block) : block([a])
            }
            return try y.sum().gradients(of: [a, weight]).map { try $0.values() }
        }
        XCTAssertEqual(try gradients(checkpointing: false), try gradients(checkpointing: true))
        XCTAssertEqual(types, [.bfloat16, .bfloat16, .bfloat16])
        XCTAssertEqual(Compute.dtype, .float32)
    }

    func testABlockThatUsesUpTheGraphAroundItIsAnError() throws {
        let a = try leaf([1, 2])
        let accumulator = try Accumulator(Optimizer([a], SGD()))
        let x = try a * a
        let other = try (x * a).sum()
        var runs = 0
        let y = try checkpoint([x]) { (inputs) throws(GAError) in
            runs += 1
            if runs == 2 { _ = try other.gradients(of: [a]) }
            return try inputs[0] * a
        }
        let loss = try y.sum()
        assertThrows(.state, naming: "used up") { try accumulator.accumulate(loss, weight: 1) }
        try accumulator.zero()
        try accumulator.accumulate(try (a * a).sum(), weight: 1)
        XCTAssertEqual(try accumulator.accumulatedGradient(0).values(), [2, 4])
    }

    func testTheBlocksErrorIsTheCheckpointsError() throws {
        let a = try leaf([1, 2])
        assertThrows(.shape, naming: "broadcast") {
            _ = try checkpoint([a]) { (inputs) throws(GAError) in try inputs[0] + Tensor([1, 2, 3], shape: [3]) }
        }
    }
}
