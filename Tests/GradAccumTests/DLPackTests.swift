import GradAccum
import XCTest

/// Exchange by DLPack as a Swift program has it. (What other libraries hand over is tested through C, in
/// Tests/python/test_dlpack.py.)
final class DLPackTests: XCTestCase {
    func testTensorComesBackOnTheSameMemoryAndIsFreedWithTheLastOfBoth() throws {
        let before = Runtime.memoryUsage.liveBytes
        var x: Tensor? = try Tensor([1, 2, 3, 4, 5, 6], shape: [2, 3]).transposed(0, 1)
        for versioned in [true, false] {
            var back: Tensor? =
                versioned
                ? try Tensor(dlpack: x!.dlpack()) : try Tensor(unversionedDLPack: x!.unversionedDLPack())
            XCTAssertEqual(back?.shape, [3, 2])
            XCTAssertEqual(back?.strides, [1, 3])
            XCTAssertEqual(back?.data, x?.data)
            try back?.fill(Double(versioned ? 7 : 8))
            XCTAssertEqual(try x?.values(), [Float](repeating: versioned ? 7 : 8, count: 6))
            if !versioned {
                x = nil
                XCTAssertEqual(try back?.values(), [Float](repeating: 8, count: 6))
            }
            back = nil
        }
        XCTAssertEqual(Runtime.memoryUsage.liveBytes, before)
    }

    func testReadOnlyTensorStaysSoOnTheOtherSideAndIsNoParameter() throws {
        let x = try Tensor([1, 2], shape: [2])
        try x.setReadOnly()
        let back = try Tensor(dlpack: x.dlpack())
        XCTAssertTrue(back.isReadOnly)
        for write in [{ try back.fill(0) }, { _ = try Optimizer([back], SGD(learningRate: 1)) }] {
            XCTAssertThrowsError(try write()) { XCTAssertEqual(($0 as? GAError)?.kind, .invalidArgument) }
        }
        XCTAssertThrowsError(try x.unversionedDLPack()) { XCTAssertEqual(($0 as? GAError)?.kind, .unsupported) }
        let copy = try Tensor(unversionedDLPack: x.unversionedDLPack(copy: true))
        XCTAssertNotEqual(copy.data, x.data)
        try copy.fill(0)
        XCTAssertEqual(try x.values(), [1, 2])
    }
}
