package com.example.pixyproxy;

import static java.util.stream.Collectors.toMap;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.QuotaFailure;
import com.google.rpc.RequestInfo;
import com.google.rpc.ResourceInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Deadline;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;

/**
 * What an error of the server says to programs. Parts that it does not have are empty.
 *
 * @param violations descriptions by field
 */
public record Refusal(
    Status.Code code,
    String reason,
    String domain,
    Map<String, String> metadata,
    String requestId,
    Map<String, String> violations,
    String resource,
    List<String> quota,
    Duration retryAfter) {
  private static final int MAX_ATTEMPTS = 5;
  private static final Duration FIRST_BACKOFF = Duration.ofMillis(500);

  /** Reads a call's error, with its google.rpc details. */
  public static Refusal of(StatusRuntimeException error) {
    var details = StatusProto.fromThrowable(error).getDetailsList();
    var info = detail(details, ErrorInfo.getDefaultInstance());
    var delay = detail(details, RetryInfo.getDefaultInstance()).getRetryDelay();
    return new Refusal(
        error.getStatus().getCode(),
        info.getReason(),
        info.getDomain(),
        info.getMetadataMap(),
        detail(details, RequestInfo.getDefaultInstance()).getRequestId(),
        detail(details, BadRequest.getDefaultInstance()).getFieldViolationsList().stream()
            .collect(
                toMap(
                    BadRequest.FieldViolation::getField,
                    BadRequest.FieldViolation::getDescription,
                    (first, second) -> first)),
        detail(details, ResourceInfo.getDefaultInstance()).getResourceName(),
        detail(details, QuotaFailure.getDefaultInstance()).getViolationsList().stream()
            .map(QuotaFailure.Violation::getSubject)
            .toList(),
        Duration.ofSeconds(delay.getSeconds(), delay.getNanos()));
  }

  /**
   * Makes a call up to five times, as long as its errors pass with time and the deadline leaves enough.
   *
   * <p>It is for calls that may be made twice: reads, UpdateImage, and CreateImage with a request_id.
   */
  public static <T> T repeat(Deadline deadline, Supplier<T> call) throws InterruptedException {
    var backoff = FIRST_BACKOFF;
    for (var attempt = 1; ; attempt++) {
      try {
        return call.get();
      } catch (StatusRuntimeException error) {
        var refusal = of(error);
        var isTold = !refusal.retryAfter.isZero();
        var passes = isTold || refusal.code == Status.Code.UNAVAILABLE || refusal.code == Status.Code.ABORTED;
        var wait = isTold ? refusal.retryAfter : backoff;
        if (!passes
            || attempt == MAX_ATTEMPTS
            || deadline.timeRemaining(TimeUnit.MILLISECONDS) < wait.toMillis()) {
          throw error;
        }
        backoff = backoff.multipliedBy(2);
        Thread.sleep(wait.toMillis());
      }
    }
  }

  /** The detail of a kind, or the given empty one. */
  @SuppressWarnings("unchecked")
  private static <T extends Message> T detail(List<Any> details, T empty) {
    try {
      for (var packed : details) {
        if (packed.is(empty.getClass())) {
          return (T) packed.unpack(empty.getClass());
        }
      }
      return empty;
    } catch (InvalidProtocolBufferException error) {
      throw new IllegalArgumentException("A detail of the error cannot be read.", error);
    }
  }
}
