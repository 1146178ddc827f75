import GradAccum
import XCTest

/// Every row of the table against a difference quotient of its forward pass.
final class GradientTests: XCTestCase {
    func testGradientsAgreeWithDifferenceQuotients() throws {
        for (row, opCase) in OpCase.all.enumerated() where opCase.isSmooth {
            try check(opCase, seed: UInt64(row))
        }
    }

    /// The loss is the result dotted with random weights, in double. For each real operand its directional derivative,
    /// by the gradient, must equal the five-point quotient of the loss (truncation error of order h^4).
    private func check(_ opCase: OpCase, seed: UInt64) throws {
        var generator = SplitMix64(seed)
        let values = opCase.operands().map { OperandValues($0, &generator) }
        let leaves = try values.map { value -> Tensor in
            let tensor = try value.tensor()
            if value.isReal { try tensor.setRequiresGrad(true) }
            return tensor
        }
        let result = try opCase.apply(leaves)
        let weights = (0..<result.elementCount).map { _ in Float.random(in: -1...1, using: &generator) }
        let loss = try (result * Tensor(weights, shape: result.shape)).sum()
        let real = values.indices.filter { values[$0].isReal }
        let gradients = try loss.gradients(of: real.map { leaves[$0] })

        for (index, gradient) in zip(real, gradients) {
            let direction = (0..<values[index].count).map { _ in Float.random(in: -1...1, using: &generator) }
            func lossMoved(by distance: Float) throws -> Double {
                let operands = try values.indices.map {
                    $0 == index
                        ? try values[$0].tensor(moved: distance, along: direction) : try values[$0].tensor()
                }
                let outputs = try Recording.off { () throws(GAError) in
                    do { return try opCase.apply(operands).values() } catch let error as GAError { throw error } catch {
                        throw GAError(.internal, "\(error)")
                    }
                }
                return zip(outputs, weights).reduce(0) { $0 + Double($1.0) * Double($1.1) }
            }
            let h: Float = 1.0 / 64
            let quotient =
                (8 * (try lossMoved(by: h) - lossMoved(by: -h)) - (try lossMoved(by: 2 * h) - lossMoved(by: -2 * h)))
                / (12 * Double(h))
            let slopes = try gradient.values()
            let slope = zip(slopes, direction).reduce(0) { $0 + Double($1.0) * Double($1.1) }
            // What rounding can do: an ulp of each output, seen through its weight, over the step.
            let magnitude = try result.values().reduce(0) { $0 + Double(abs($1)) }
            let length = slopes.reduce(0) { $0 + Double(abs($1)) }
            let tolerance =
                4 * 0x1p-24 * magnitude / Double(h) + 2e-4 * length / Double(max(slopes.count, 1)).squareRoot() + 1e-5
            XCTAssertEqual(slope, quotient, accuracy: tolerance, "\(opCase.name), operand \(index)")
        }
    }

    func testEveryLeafOfALossGetsItsOwnGradient() throws {
        let a = try Tensor([1, 2, 3], shape: [3])
        let b = try Tensor([4, 5, 6], shape: [3])
        try a.setRequiresGrad(true)
        try b.setRequiresGrad(true)
        let gradients = try (a * b).sum().gradients(of: [b, a])
        XCTAssertEqual(try gradients[0].values(), [1, 2, 3])
        XCTAssertEqual(try gradients[1].values(), [4, 5, 6])
    }

    func testALeafThatTheLossDoesNotDependOnHasZeros() throws {
        let a = try Tensor([1, 2], shape: [2])
        let b = try Tensor([3, 4], shape: [2])
        try a.setRequiresGrad(true)
        try b.setRequiresGrad(true)
        XCTAssertEqual(try a.sum().gradients(of: [b])[0].values(), [0, 0])
    }

    func testAGraphOfManyOperationsIsFreedWithoutDeepRecursion() throws {
        let a = try Tensor([1], shape: [1])
        try a.setRequiresGrad(true)
        var x = a
        for _ in 0..<200_000 { x = try x + a }
        x = a
        XCTAssertTrue(x.requiresGrad)
    }

    func testALongChainGoesThroughBackward() throws {
        let a = try Tensor([1], shape: [1])
        try a.setRequiresGrad(true)
        var x = a
        for _ in 0..<20_000 { x = try x + a }
        XCTAssertEqual(try x.sum().gradients(of: [a])[0].values(), [20_001])
    }

    func testAUsedUpGraphIsRefused() throws {
        let a = try Tensor([1, 2], shape: [2])
        try a.setRequiresGrad(true)
        let loss = try (a * a).sum()
        _ = try loss.gradients(of: [a])
        assertThrows(.state, naming: "used up") { _ = try loss.gradients(of: [a]) }
    }

    func testAnOperandThatChangedSinceTheForwardPassIsRefused() throws {
        let a = try Tensor([1, 2], shape: [2])
        try a.setRequiresGrad(true)
        a.name = "gain"
        let loss = try (a * a).sum()
        try a.fill(3)
        assertThrows(.state, naming: "\"gain\"") { _ = try loss.gradients(of: [a]) }
    }
}
