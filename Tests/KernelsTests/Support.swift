import CShims
import Kernels
import KernelsAVX2
import KernelsAVX512
import KernelsAVX512BF16
import XCTest

/// A table of kernels with the name of its instruction set.
struct Build {
    let name: String
    let kernels: shims_kernel_table

    /// The builds that this CPU can run.
    static let all: [Build] = {
        let level = shims_cpu_level()
        var builds = [Build(name: "baseline", kernels: Kernels.makeKernelTable())]
        if level >= 1 { builds.append(Build(name: "AVX2", kernels: KernelsAVX2.makeKernelTable())) }
        if level >= 2 { builds.append(Build(name: "AVX-512", kernels: KernelsAVX512.makeKernelTable())) }
        if level >= 3 {
            builds.append(Build(name: "AVX-512 BF16", kernels: KernelsAVX512BF16.makeKernelTable()))
        }
        return builds
    }()
}

/// Lengths around the width of a vector and of a chain of four.
let lengths = [0, 1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 100, 257, 1000]

/// A small repeatable random number generator.
struct SplitMix64: RandomNumberGenerator {
    var state: UInt64

    init(_ seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    mutating func floats(_ count: Int, in range: ClosedRange<Float> = -2...2) -> [Float] {
        (0..<count).map { _ in Float.random(in: range, using: &self) }
    }

    /// Numbers of any size with every kind of special value among them.
    mutating func specialFloats(_ count: Int) -> [Float] {
        let specials: [Float] = [
            0, -0, 1, -1, .nan, .infinity, -.infinity, .leastNonzeroMagnitude, -.leastNonzeroMagnitude,
            .leastNormalMagnitude, .greatestFiniteMagnitude, -.greatestFiniteMagnitude, 0x1p-140, -0x1p-130,
        ]
        return (0..<count).map { _ in
            Bool.random(using: &self)
                ? specials.randomElement(using: &self)!
                : Float(sign: .random(using: &self), exponent: .random(in: -40...40, using: &self), significand: 1.37)
        }
    }
}

extension FloatingPointSign {
    static func random(using generator: inout SplitMix64) -> FloatingPointSign {
        Bool.random(using: &generator) ? .plus : .minus
    }
}

/// Memory for a kernel, unaligned to a vector, with canaries before and after it. It lives until the end of the
/// test, when the canaries are checked: a kernel holds a pointer, which keeps nothing alive.
struct Buffer<Element: BitwiseCopyable> {
    let pointer: UnsafeMutablePointer<Element>
    let count: Int

    init(_ elements: [Element]) {
        let size = MemoryLayout<Element>.stride
        // One element past an aligned place.
        let guarded = GuardedMemory(byteCount: elements.count * size, offset: size)
        GuardedMemory.ofThisTest.append(guarded)
        count = elements.count
        pointer = guarded.start.bindMemory(to: Element.self, capacity: max(count, 1))
        for (i, element) in elements.enumerated() { pointer[i] = element }
    }

    init(repeating element: Element, count: Int) {
        self.init(Array(repeating: element, count: count))
    }

    var elements: [Element] { (0..<count).map { pointer[$0] } }
}

/// Bytes between two margins that nobody may write.
struct GuardedMemory {
    /// Tests run one after the other.
    nonisolated(unsafe) static var ofThisTest: [GuardedMemory] = []

    private let all: UnsafeMutableRawBufferPointer
    private let inside: Range<Int>
    private static let margin = 128

    init(byteCount: Int, offset: Int) {
        inside = Self.margin + offset..<Self.margin + offset + byteCount
        all = .allocate(byteCount: inside.upperBound + Self.margin, alignment: 64)
        all.initializeMemory(as: UInt8.self, repeating: 0xa5)
    }

    var start: UnsafeMutableRawPointer { all.baseAddress! + inside.lowerBound }

    func checkAndFree() {
        let margins = [0..<inside.lowerBound, inside.upperBound..<all.count]
        XCTAssertTrue(
            margins.allSatisfy { all[$0].allSatisfy { $0 == 0xa5 } },
            "\(inside.count) bytes were written past their end")
        all.deallocate()
    }
}

class KernelTestCase: XCTestCase {
    override func tearDown() {
        for memory in GuardedMemory.ofThisTest { memory.checkAndFree() }
        GuardedMemory.ofThisTest = []
    }
}

/// The distance of a result from the true value, in units in the last place of the latter. What is below the
/// normal range may be flushed to zero.
func ulps(_ result: Float, _ truth: Double) -> Double {
    let rounded = Float(truth)
    if rounded.isNaN || result.isNaN { return rounded.isNaN && result.isNaN ? 0 : .infinity }
    if rounded.isInfinite || result.isInfinite { return rounded == result ? 0 : .infinity }
    let unit = max(Double(rounded.magnitude.ulp), rounded.magnitude < .leastNormalMagnitude ? 0x1p-126 : 0)
    return abs(Double(result) - truth) / unit
}

/// Checks results against a reference, in ULPs of the size of what was added up to make it.
func expect(
    _ results: [Float], near truth: [Double], within bound: Double, size: [Double]? = nil,
    _ context: @autoclosure () -> String, file: StaticString = #filePath, line: UInt = #line
) {
    XCTAssertEqual(results.count, truth.count, file: file, line: line)
    for i in results.indices {
        var distance = ulps(results[i], truth[i])
        if let size, distance.isFinite {
            distance = abs(Double(results[i]) - truth[i]) / Double(Float(max(size[i], 0x1p-103)).ulp)
        }
        if distance > bound {
            XCTFail(
                "\(context()): [\(i)] is \(results[i]), \(distance) ULP from \(truth[i])", file: file, line: line)
            return
        }
    }
}

/// Checks that two lists agree bit for bit; any NaN equals any other.
func expectSameBits(
    _ a: [Float], _ b: [Float], _ context: @autoclosure () -> String, file: StaticString = #filePath,
    line: UInt = #line
) {
    XCTAssertEqual(a.count, b.count, file: file, line: line)
    for i in a.indices where a[i].bitPattern != b[i].bitPattern && !(a[i].isNaN && b[i].isNaN) {
        XCTFail("\(context()): [\(i)] is \(a[i]) against \(b[i])", file: file, line: line)
        return
    }
}

/// A number that must not be read: the contents of outputs before a kernel stores to them.
let unread = Float.nan

/// What is in an output before a kernel runs.
func initial(_ count: Int, accumulate: Bool, _ random: inout SplitMix64) -> [Float] {
    accumulate ? random.floats(count) : Array(repeating: unread, count: count)
}

/// The ways of treating denormals that results must not depend on. Without optimisation, binary16 is converted by a
/// library routine instead of an instruction, and flushing does reach that.
#if DEBUG
    let denormalModes = [false]
#else
    let denormalModes = [false, true]
#endif

/// Runs `body` as the library's threads do, with denormals flushed, or plainly.
func withDenormalsFlushed<Result>(_ flushed: Bool, _ body: () -> Result) -> Result {
    guard flushed else { return body() }
    let mode = shims_enter_compute()
    defer { shims_leave_compute(mode) }
    return body()
}
