import GradAccum
import XCTest

/// What a backward pass needs beside the activations of the forward pass, which it frees on its way.
final class BackwardMemoryTests: XCTestCase {
    private let count = 8192

    /// The bytes above those of the forward pass, in activations, of `depth` times `layer` between a sum of squares and `x`.
    private func excess(_ depth: Int, _ layer: (Tensor) throws -> Tensor) throws -> Double {
        let gain = try Tensor([Float](repeating: 0.5, count: count), shape: [count])
        let accumulator = try Accumulator(Optimizer([gain], SGD()))
        let x = try Tensor([Float](repeating: 0.5, count: 2 * count), shape: [2, count])
        func loss() throws -> Tensor {
            var y = try x * gain
            for _ in 0..<depth { y = try layer(y) }
            return try (y * y).sum()
        }
        try accumulator.accumulate(try loss(), weight: 1)
        let last = try loss()
        Runtime.resetPeakMemory()
        let before = Runtime.memoryUsage.liveBytes
        try accumulator.accumulate(last, weight: 1)
        return Double(Runtime.memoryUsage.peakBytes - before) / Double(x.elementCount * 4)
    }

    func testGradientsAndWhatWasSavedAreFreedAtOnce() throws {
        let shallow = try excess(1) { try $0.gelu() }
        XCTAssertEqual(try excess(40) { try $0.gelu() }, shallow)
        XCTAssertLessThan(shallow, 2.1)
    }

    func testResidualsNeedNoMoreHoweverManyThereAre() throws {
        let shallow = try excess(1) { try $0 + $0.gelu().gelu() }
        XCTAssertEqual(try excess(40) { try $0 + $0.gelu().gelu() }, shallow)
        XCTAssertLessThan(shallow, 2.1)
    }

    func testACheckpointNeedsItsBlockAndOneGradient() throws {
        let chain = try excess(10) { (x) throws(GAError) in
            try checkpoint([x]) { (inputs) throws(GAError) in try inputs[0].gelu().gelu() }
        }
        XCTAssertLessThan(chain, 3.1)
        let residual = try excess(10) { (x) throws(GAError) in
            try checkpoint([x]) { (inputs) throws(GAError) in try inputs[0] + inputs[0].gelu().gelu() }
        }
        XCTAssertLessThan(residual, 4.1)
    }

    /// The bytes, in tensors of 2 * `count` numbers, that a result of `x` [2, count] keeps until its backward pass.
    private func kept(_ operation: (Tensor) throws -> Tensor) throws -> Double {
        let gain = try Tensor([Float](repeating: 0.5, count: count), shape: [count])
        try gain.setRequiresGrad(true)
        let constant = try Tensor([Float](repeating: 0.5, count: 2 * count), shape: [2, count])
        let before = Runtime.memoryUsage.liveBytes
        let y = try operation(try constant * gain)
        let after = Runtime.memoryUsage.liveBytes
        withExtendedLifetime(y) {}
        return (Double(after - before) / Double(constant.elementCount * 4) * 100).rounded() / 100
    }

    func testAnOperationKeepsWhatItsGradientIsMadeFrom() throws {
        let other = try Tensor([Float](repeating: 2, count: 2 * count), shape: [2, count])
        let result = 1.0
        XCTAssertEqual(try kept { try $0 + other }, result)
        XCTAssertEqual(try kept { try other - $0 }, result)
        XCTAssertEqual(try kept { try $0 + $0 }, result)
        XCTAssertEqual(try kept { try ($0 + other) - ($0 - other) }, result)
        XCTAssertEqual(try kept { try $0 * other }, result)
        XCTAssertEqual(try kept { try $0 / other }, result)
        XCTAssertEqual(try kept { try other / $0 }, result + 1)
        XCTAssertEqual(try kept { try $0 * $0 }, result + 1)
        XCTAssertEqual(try kept { try $0.gelu() }, result + 1)
        XCTAssertEqual(try kept { try $0.softmax() }, result)
        XCTAssertEqual(try kept { try $0.cast(to: .bfloat16) }, 0.5)
        XCTAssertEqual(try kept { try $0.transposed().reshaped([2, -1]) }, result)
        XCTAssertEqual(try kept { try $0.sliced(axis: 0, 0..<1).sum() }, 0)
        XCTAssertEqual(try kept { try $0.mean([0]) }, 0.5)
        let frozen = try Tensor([Float](repeating: 2, count: count), shape: [1, count])
        XCTAssertEqual(try kept { try $0.linear(frozen) }, 0)
        XCTAssertEqual(try kept { try matmul($0, frozen.transposed()) }, 0)
        let weight = try Tensor([Float](repeating: 2, count: count), shape: [1, count])
        try weight.setRequiresGrad(true)
        XCTAssertEqual(try kept { try $0.linear(weight) }, result)
        let indices = try Tensor(indices: [1], shape: [1])
        XCTAssertEqual(try kept { try $0.embedding(indices) }, 0.5)
    }

    func testOnlyAWriteToWhatIsReadIsAnError() throws {
        let values: [Float] = [1, 2, 3]
        let a = try Tensor(values, shape: [3])
        try a.setRequiresGrad(true)
        func gradient(_ operation: (Tensor, Tensor) throws -> Tensor) throws -> [Float] {
            let (constant, x) = (try Tensor(values, shape: [3]), try a * a)
            let y = try operation(x, constant)
            for tensor in [x, constant] { try tensor.copyIn([9, 9, 9] as [Float], byteCount: 12) }
            return try y.sum().gradients(of: [a])[0].values()
        }
        XCTAssertEqual(try gradient { try $0 + $1 - $0 - $0 }, [-2, -4, -6])
        XCTAssertEqual(try gradient { x, _ in try x.cast(to: .bfloat16) }, [2, 4, 6])
        XCTAssertEqual(try gradient { x, _ in try x.mean([0], keepAxes: true) }, [2, 4, 6].map { $0 / 3 })
        let reading: [(Tensor, Tensor) throws -> Tensor] = [
            { try $0 * $1 }, { try $0 / $1 }, { try $1 / $0 }, { x, _ in try x.relu() }, { try $0.mse($1) },
            { try matmul($0.reshaped([1, 3]), $1.reshaped([3, 1])) }, { try $0.linear($1.reshaped([1, 3])) },
            { x, weight in try x.layerNorm(weight, nil) },
        ]
        for operation in reading {
            assertThrows(.state, naming: "has changed") { _ = try gradient(operation) }
        }
        // A parameter is checked wherever it is used.
        for operation in [{ x in try x + a }, { x in try x.layerNorm(nil, a) }] as [(Tensor) throws -> Tensor] {
            let loss = try operation(try Tensor(values, shape: [3])).sum()
            try a.copyIn(values, byteCount: 12)
            assertThrows(.state, naming: "has changed") { _ = try loss.gradients(of: [a]) }
        }
        let x = try a * a
        let y = try x.softmax()
        try y.copyIn(values, byteCount: 12)
        assertThrows(.state, naming: "read by softmax, has changed") { _ = try y.sum().gradients(of: [a]) }
    }
}
