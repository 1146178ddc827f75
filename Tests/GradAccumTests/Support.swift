import GradAccum
import XCTest

/// Repeatable random numbers (Steele et al., OOPSLA 2014).
struct SplitMix64: RandomNumberGenerator {
    private var state: UInt64

    init(_ seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

/// The values of an operand; those of a sample or of indices can be cut at samples.
struct OperandValues {
    let operand: Operand
    private var numbers: [Float] = []
    private var indices: [Int64] = []

    init(_ operand: Operand, _ generator: inout SplitMix64) {
        self.operand = operand
        let count = operand.shape.reduce(1, *)
        if case .indices(let limit) = operand.role {
            indices = (0..<count).map { _ in Int64.random(in: 0..<Int64(limit), using: &generator) }
        } else {
            numbers = (0..<count).map { _ in Float.random(in: operand.range, using: &generator) }
        }
    }

    var isParameter: Bool { if case .parameter = operand.role { true } else { false } }
    var samples: Int? { isParameter ? nil : operand.shape[0] }
    var count: Int { operand.shape.reduce(1, *) }
    var isReal: Bool { indices.isEmpty }

    /// The whole, moved by `distance` along `direction`.
    func tensor(moved distance: Float = 0, along direction: [Float] = []) throws -> Tensor {
        guard isReal else { return try Tensor(indices: indices, shape: operand.shape) }
        let values = direction.isEmpty ? numbers : zip(numbers, direction).map { $0 + distance * $1 }
        return try Tensor(values, shape: operand.shape)
    }

    /// The samples of a micro-batch.
    func tensor(samples range: Range<Int>) throws -> Tensor {
        let perSample = operand.shape.dropFirst().reduce(1, *)
        let elements = (range.lowerBound * perSample)..<(range.upperBound * perSample)
        let shape = [range.count] + operand.shape.dropFirst()
        return isReal
            ? try Tensor(Array(numbers[elements]), shape: shape)
            : try Tensor(indices: Array(indices[elements]), shape: shape)
    }
}

/// Runs `body` with a number of threads and brings the former number back.
func withThreads<Result>(_ count: Int, _ body: () throws -> Result) throws -> Result {
    let before = Runtime.numThreads
    try Runtime.setNumThreads(count)
    defer { try? Runtime.setNumThreads(before) }
    return try body()
}

/// Runs `body` with operations computing in a type and brings the former type back.
func withCompute<Result>(_ dtype: DType, _ body: () throws -> Result) throws -> Result {
    let before = Compute.dtype
    try Compute.setDType(dtype)
    defer { try? Compute.setDType(before) }
    return try body()
}

/// A random split of `count` samples into micro-batches, ragged ones among them.
func randomSplit(_ count: Int, _ generator: inout SplitMix64) -> [Range<Int>] {
    var ranges: [Range<Int>] = []
    var start = 0
    while start < count {
        let size = Int.random(in: 1...(count - start), using: &generator)
        ranges.append(start..<(start + size))
        start += size
    }
    return ranges
}

func assertThrows(
    _ kind: GAError.Kind, naming word: String, _ body: () throws -> Void, file: StaticString = #filePath,
    line: UInt = #line
) {
    XCTAssertThrowsError(try body(), file: file, line: line) { error in
        let error = error as? GAError
        XCTAssertEqual(error?.kind, kind, error?.message ?? "", file: file, line: line)
        XCTAssert(
            error?.message.contains(word) == true, "\"\(error?.message ?? "")\" does not name \(word)", file: file,
            line: line)
    }
}
