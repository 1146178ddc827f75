import GradAccum
import XCTest

/// Results that are made again for a gradient instead of being kept: less memory, and no other bit.
final class SavedOperandTests: XCTestCase {
    private typealias Operation = (Tensor) throws(GAError) -> Tensor

    private let (samples, time, channels, outputs) = (3, 19, 1024, 5)

    private func numbers(_ shape: [Int], seed: UInt64, in range: ClosedRange<Float> = -2...2) throws -> Tensor {
        var generator = SplitMix64(seed)
        let count = shape.reduce(1, *)
        return try Tensor((0..<count).map { _ in Float.random(in: range, using: &generator) }, shape: shape)
    }

    private func parameter(_ shape: [Int], seed: UInt64) throws -> Tensor {
        let tensor = try numbers(shape, seed: seed)
        try tensor.setRequiresGrad(true)
        return tensor
    }

    /// Operations whose results can be made again, with the parameters `gain` and `shift` [channels].
    private func producers(_ gain: Tensor, _ shift: Tensor) -> [(String, Operation)] {
        [
            ("relu", { (x) throws(GAError) in try x.relu() }),
            ("gelu by erf", { (x) throws(GAError) in try x.gelu(.erf) }),
            ("gelu by tanh", { (x) throws(GAError) in try x.gelu(.tanh) }),
            ("gelu of a transposed tensor", { (x) throws(GAError) in try x.transposed(0, 1).gelu() }),
            ("layer_norm", { (x) throws(GAError) in try x.layerNorm(gain, shift) }),
            ("layer_norm without parameters", { (x) throws(GAError) in try x.layerNorm(nil, nil) }),
        ]
    }

    /// Operations that save their operand, with the parameter `weight` [outputs, channels].
    private func readers(_ weight: Tensor) throws -> [(String, Operation)] {
        let targets = try Tensor(
            indices: (0..<(samples * time)).map { Int64($0 % outputs) }, shape: [samples * time])
        let channels = channels
        return [
            ("linear", { (x) throws(GAError) in try x.linear(weight) }),
            ("linear of a view", { (x) throws(GAError) in try x.reshaped([-1, channels]).linear(weight) }),
            (
                "linear_cross_entropy",
                { (x) throws(GAError) in
                    try x.reshaped([-1, channels]).linearCrossEntropy(weight, targets)
                }
            ),
            ("two linears", { (x) throws(GAError) in try x.linear(weight) * x.linear(weight) }),
        ]
    }

    func testTheBitsAreThoseOfAKeptResult() throws {
        let constant = try numbers([samples, time, channels], seed: 1)
        let scale = try parameter([channels], seed: 2)
        let (gain, shift) = (try parameter([channels], seed: 3), try parameter([channels], seed: 4))
        let weight = try parameter([outputs, channels], seed: 5)
        let parameters = [scale, gain, shift, weight]
        for dtype in [DType.float32, .bfloat16, .float16] {
            for (producer, produce) in producers(gain, shift) {
                for (reader, read) in try readers(weight) {
                    /// The gradients, and the bytes that the loss keeps.
                    func gradients(keeping: Bool, threads: Int) throws -> ([[UInt32]], Int) {
                        try withThreads(threads) {
                            let before = Runtime.memoryUsage.liveBytes
                            var kept: Tensor?
                            let loss = try Compute.with(dtype) { () throws(GAError) in
                                let result = try produce(try constant * scale)
                                if keeping { kept = result }
                                return try read(result).sum()
                            }
                            let bytes = Runtime.memoryUsage.liveBytes - before
                            let used = try (loss + (gain + shift).sum()).gradients(of: parameters)
                            withExtendedLifetime(kept) {}
                            return (try used.map { try $0.values().map(\.bitPattern) }, bytes)
                        }
                    }
                    let kept = try gradients(keeping: true, threads: 2)
                    for threads in [1, 2] {
                        let made = try gradients(keeping: false, threads: threads)
                        XCTAssertEqual(kept.0, made.0, "\(reader) of \(producer), \(dtype)")
                        XCTAssertLessThanOrEqual(
                            made.1, kept.1 - constant.elementCount * 2, "\(reader) of \(producer), \(dtype)")
                    }
                }
            }
        }
    }

    func testOneOperationIsMadeAgainButNoTwo() throws {
        let scale = try parameter([channels], seed: 2)
        let weight = try parameter([outputs, channels], seed: 5)
        let constant = try numbers([64, channels], seed: 1)
        func kept(_ operation: Operation) throws -> Int {
            let before = Runtime.memoryUsage.liveBytes
            let y = try operation(try constant * scale)
            let bytes = Runtime.memoryUsage.liveBytes - before
            withExtendedLifetime(y) {}
            return Int((Double(bytes) / Double(constant.elementCount * 4)).rounded())
        }
        XCTAssertEqual(try kept { (x) throws(GAError) in try x.linear(weight) }, 1)
        XCTAssertEqual(try kept { (x) throws(GAError) in try x.gelu().linear(weight) }, 1)
        XCTAssertEqual(try kept { (x) throws(GAError) in try x.gelu().layerNorm(nil, nil).linear(weight) }, 2)
        XCTAssertEqual(try kept { (x) throws(GAError) in try x.gelu().sliced(axis: 0, 1..<64).linear(weight) }, 2)
        // A row is too short to be worth it.
        XCTAssertEqual(
            try kept { (x) throws(GAError) in try x.sliced(axis: 0, 0..<1).gelu().linear(weight) + x.sum() }, 1)
    }

    func testWritesToAResultThatCanBeMadeAgain() throws {
        let scale = try parameter([channels], seed: 2)
        let weight = try parameter([outputs, channels], seed: 5)
        let constant = try numbers([64, channels], seed: 1)
        let other = try numbers([64, channels], seed: 7).values()
        func gradient(_ write: (Tensor, Bool) throws -> Void, isKept: Bool = false) throws -> [Float] {
            var result: Tensor? = try (constant * scale).gelu()
            try write(result!, true)
            let y = try result!.linear(weight)
            try write(result!, false)
            let kept = isKept ? result : nil
            result = nil
            let gradient = try y.sum().gradients(of: [weight])[0].values()
            withExtendedLifetime(kept) {}
            return gradient
        }
        let plain = try gradient { _, _ in }
        let written = try other.withUnsafeBytes { bytes in
            // What a linear layer has read is what its gradient is made from, whoever wrote it.
            let noted = try gradient { result, isBefore in
                if isBefore { try result.copyIn(bytes.baseAddress!, byteCount: bytes.count) }
            }
            let unnoted = try gradient { result, isBefore in
                if isBefore { result.data.copyMemory(from: bytes.baseAddress!, byteCount: bytes.count) }
            }
            XCTAssertEqual(noted, unnoted)
            for isKept in [false, true] {
                XCTAssertEqual(
                    plain,
                    try gradient(
                        { result, isBefore in
                            if !isBefore { try result.copyIn(bytes.baseAddress!, byteCount: bytes.count) }
                        }, isKept: isKept))
            }
            return noted
        }
        XCTAssertNotEqual(plain, written)
    }

    func testAWriteToWhatAResultIsMadeFromIsAnError() throws {
        let scale = try parameter([channels], seed: 2)
        let weight = try parameter([outputs, channels], seed: 5)
        let constant = try numbers([64, channels], seed: 1)
        let values = try constant.values()
        for target in 0..<3 {
            let x = try constant * scale
            let (gain, shift) = (try numbers([channels], seed: 8), try numbers([channels], seed: 9))
            let loss = try x.layerNorm(gain, shift).linear(weight).sum()
            let written = [x, gain, shift][target]
            try written.copyIn(values, byteCount: written.elementCount * 4)
            assertThrows(.state, naming: "read by layer_norm, has changed") { _ = try loss.gradients(of: [weight]) }
        }
    }

    func testALongChainIsFreedWithoutRecursion() throws {
        var x = try parameter([4], seed: 1)
        for _ in 0..<50_000 { x = try x.relu() }
        XCTAssertTrue(x.requiresGrad)
    }
}
