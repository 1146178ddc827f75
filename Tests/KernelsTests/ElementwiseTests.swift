import CShims
import Glibc
import XCTest

final class ElementwiseTests: KernelTestCase {
    let operations: [(op: shims_binary, value: (Float, Float) -> Float)] = [
        (SHIMS_ADD, { $0 + $1 }), (SHIMS_SUBTRACT, { $0 - $1 }), (SHIMS_MULTIPLY, { $0 * $1 }),
        (SHIMS_DIVIDE, { $0 / $1 }),
    ]

    func testBinaryIsTheOperationOfTheHardware() {
        var random = SplitMix64(1)
        for build in Build.all {
            for n in lengths {
                for (op, value) in operations {
                    for (aStep, bStep) in [(1, 1), (1, 0), (0, 1), (0, 0)] {
                        let a = Buffer(random.specialFloats(aStep == 1 ? n : 1))
                        let b = Buffer(random.specialFloats(bStep == 1 ? n : 1))
                        let out = Buffer(repeating: unread, count: n)
                        build.kernels.binary(
                            op, out.pointer, a.pointer, Int64(aStep), b.pointer, Int64(bStep), Int64(n))
                        let expected = (0..<n).map { value(a.pointer[$0 * aStep], b.pointer[$0 * bStep]) }
                        expectSameBits(out.elements, expected, "\(build.name) \(op) n=\(n)")
                    }
                }
            }
        }
    }

    func testBinaryInPlace() {
        var random = SplitMix64(2)
        for build in Build.all {
            for n in lengths {
                let a = random.floats(n)
                let b = random.floats(n)
                let (left, right) = (Buffer(a), Buffer(b))
                build.kernels.binary(SHIMS_SUBTRACT, left.pointer, left.pointer, 1, right.pointer, 1, Int64(n))
                expectSameBits(left.elements, zip(a, b).map { $0 - $1 }, "\(build.name) out is a")
                build.kernels.binary(SHIMS_SUBTRACT, right.pointer, left.pointer, 1, right.pointer, 1, Int64(n))
                expectSameBits(right.elements, zip(left.elements, b).map { $0 - $1 }, "\(build.name) out is b")
            }
        }
    }

    func testBinaryGradient() {
        let derivatives: [(op: shims_binary, side: Int32, value: (Double, Double) -> Double)] = [
            (SHIMS_ADD, 0, { _, _ in 1 }), (SHIMS_ADD, 1, { _, _ in 1 }),
            (SHIMS_SUBTRACT, 0, { _, _ in 1 }), (SHIMS_SUBTRACT, 1, { _, _ in -1 }),
            (SHIMS_MULTIPLY, 0, { _, b in b }), (SHIMS_MULTIPLY, 1, { a, _ in a }),
            (SHIMS_DIVIDE, 0, { _, b in 1 / b }), (SHIMS_DIVIDE, 1, { a, b in -a / (b * b) }),
        ]
        var random = SplitMix64(3)
        for build in Build.all {
            for n in lengths {
                for (op, side, derivative) in derivatives {
                    for (aStep, bStep) in [(1, 1), (1, 0), (0, 1), (0, 0)] {
                        for accumulate in [false, true] {
                            let a = Buffer(random.floats(aStep == 1 ? n : 1))
                            let b = Buffer(random.floats(bStep == 1 ? n : 1, in: 0.5...2))
                            let dy = Buffer(random.floats(n))
                            let before = initial(n, accumulate: accumulate, &random)
                            let out = Buffer(before)
                            build.kernels.binary_gradient(
                                op, side, out.pointer, dy.pointer, a.pointer, Int64(aStep), b.pointer,
                                Int64(bStep), Int64(n), accumulate ? 1 : 0)
                            let terms = (0..<n).map {
                                Double(dy.pointer[$0])
                                    * derivative(Double(a.pointer[$0 * aStep]), Double(b.pointer[$0 * bStep]))
                            }
                            expectSum(
                                out, terms, before: accumulate ? before : nil, within: 4,
                                "\(build.name) \(op) side \(side) n=\(n)")
                        }
                    }
                }
            }
        }
    }

    func testAddScaledOfEveryFormat() {
        var random = SplitMix64(4)
        for build in Build.all {
            for n in lengths {
                for accumulate in [false, true] {
                    for format in [SHIMS_F32, SHIMS_BF16, SHIMS_F16] {
                        let x = StoredNumbers(random.floats(n), format)
                        let before = initial(n, accumulate: accumulate, &random)
                        let out = Buffer(before)
                        build.kernels.add_scaled(
                            out.pointer, x.pointer, format, 0.3, Int64(n), accumulate ? 1 : 0)
                        expectSum(
                            out, x.values.map { Double($0) * Double(Float(0.3)) },
                            before: accumulate ? before : nil, within: 1.5,
                            "\(build.name) format \(format) n=\(n)")
                    }
                }
            }
        }
    }

    func testPartOfAVectorIsAllThatIsReadAndWritten() {
        // Two arrays, each at the end of a page after which there is no memory.
        let page = sysconf(Int32(_SC_PAGESIZE))
        let memory = mmap(nil, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
        defer { munmap(memory, 4 * page) }
        for gap in [page, 3 * page] { XCTAssertEqual(mprotect(memory + gap, page, PROT_NONE), 0) }
        var random = SplitMix64(14)
        for build in Build.all {
            for n in 0...33 {
                let (a, b) = (random.floats(n), random.floats(n))
                let x = (memory + page - 4 * n).bindMemory(to: Float.self, capacity: n)
                let sum = (memory + 3 * page - 4 * n).bindMemory(to: Float.self, capacity: n)
                for i in 0..<n { (x[i], sum[i]) = (a[i], b[i]) }
                sum[-1] = 7
                build.kernels.add_scaled(sum, x, SHIMS_F32, 2, Int64(n), 1)
                expectSameBits((0..<n).map { sum[$0] }, zip(a, b).map { 2 * $0 + $1 }, "\(build.name) n=\(n)")
                XCTAssertEqual(sum[-1], 7)
            }
        }
    }

    /// From every place in a line on, with nothing written before and after.
    func testStreamedProductsAreThoseOfAddScaled() {
        var random = SplitMix64(12)
        for build in Build.all {
            for format in [SHIMS_F32, SHIMS_BF16, SHIMS_F16] {
                for (n, first) in lengths.flatMap({ n in [0, 1, 5, 15].map { (n, $0) } }) {
                    for scale: Float in [1, 0.3] {
                        let x = StoredNumbers(random.specialFloats(n), format)
                        let (streamed, stored) = (
                            Buffer(repeating: unread, count: n + 32), Buffer(repeating: unread, count: n + 32)
                        )
                        withDenormalsFlushed(true) {
                            build.kernels.stream_scaled(streamed.pointer + first, x.pointer, format, scale, Int64(n))
                            build.kernels.add_scaled(stored.pointer + first, x.pointer, format, scale, Int64(n), 0)
                        }
                        expectSameBits(
                            streamed.elements, stored.elements, "\(build.name) format \(format) n=\(n) from \(first)")
                    }
                }
            }
        }
    }

    func testAddScaledByOneChangesNoBit() {
        var random = SplitMix64(5)
        for build in Build.all {
            for format in [SHIMS_F32, SHIMS_BF16, SHIMS_F16] {
                let n = 1000
                let x = StoredNumbers(random.specialFloats(n), format)
                let out = Buffer(repeating: unread, count: n)
                for flushed in denormalModes {
                    withDenormalsFlushed(flushed) {
                        build.kernels.add_scaled(out.pointer, x.pointer, format, 1, Int64(n), 0)
                    }
                    expectSameBits(out.elements, x.values, "\(build.name) format \(format)")
                }
            }
            let x = Buffer(random.floats(100))
            let before = x.elements
            build.kernels.add_scaled(x.pointer, x.pointer, SHIMS_F32, 2, 100, 0)
            expectSameBits(x.elements, before.map { $0 * 2 }, "\(build.name) in place")
        }
    }

    func testFillAndScaledDifference() {
        var random = SplitMix64(6)
        for build in Build.all {
            for n in lengths {
                let filled = Buffer(repeating: unread, count: n)
                build.kernels.fill(filled.pointer, 1.5, Int64(n))
                XCTAssertEqual(filled.elements, Array(repeating: 1.5, count: n))

                let (a, b) = (Buffer(random.floats(n)), Buffer(random.floats(n)))
                for accumulate in [false, true] {
                    let before = initial(n, accumulate: accumulate, &random)
                    let out = Buffer(before)
                    build.kernels.scaled_difference(
                        out.pointer, a.pointer, b.pointer, -0.7, Int64(n), accumulate ? 1 : 0)
                    let terms = zip(a.elements, b.elements).map { Double($0 - $1) * Double(Float(-0.7)) }
                    expectSum(
                        out, terms, before: accumulate ? before : nil, within: 1.5,
                        "\(build.name) difference n=\(n)")
                }
            }
        }
    }
}

/// Numbers in a storage format, with the values they have there.
struct StoredNumbers {
    let values: [Float]
    private let single: Buffer<Float>
    private let half: Buffer<UInt16>
    private let format: shims_format

    init(_ numbers: [Float], _ format: shims_format) {
        self.format = format
        let bits = numbers.map { format == SHIMS_F16 ? Reference.f16($0) : Reference.bf16($0) }
        single = Buffer(numbers)
        half = Buffer(bits)
        values = format == SHIMS_F32 ? numbers : bits.map { Reference.value($0, format) }
    }

    var pointer: UnsafeRawPointer {
        format == SHIMS_F32 ? UnsafeRawPointer(single.pointer) : UnsafeRawPointer(half.pointer)
    }

    /// Those of a half format.
    var halves: UnsafePointer<UInt16> { UnsafePointer(half.pointer) }
}

/// Checks `out` against terms that were stored, or added to what was there before.
func expectSum(
    _ out: Buffer<Float>, _ terms: [Double], before: [Float]?, within bound: Double,
    _ context: @autoclosure () -> String, file: StaticString = #filePath, line: UInt = #line
) {
    guard let before else {
        return expect(out.elements, near: terms, within: bound, context(), file: file, line: line)
    }
    let sums = zip(before, terms).map { Double($0) + $1 }
    let sizes = zip(before, terms).map { abs(Double($0)) + abs($1) }
    expect(out.elements, near: sums, within: bound, size: sizes, context(), file: file, line: line)
}
