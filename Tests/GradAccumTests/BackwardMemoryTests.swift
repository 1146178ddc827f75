import GradAccum
import XCTest

/// What a backward pass needs beside the activations of the forward pass, which it frees on its way.
final class BackwardMemoryTests: XCTestCase {
    private let count = 4096

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
}
