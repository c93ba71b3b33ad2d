"""Interceptors that leave a trace."""

import grpc


class Interceptor(grpc.ServerInterceptor):
    """Adds its name to the trailing metadata of a unary call, outermost last."""

    name = "configured"

    def intercept_service(self, continuation, handler_call_details):
        handler = continuation(handler_call_details)
        inner = handler.unary_unary

        def call(request, context):
            response = inner(request, context)
            earlier = context.trailing_metadata() or ()
            context.set_trailing_metadata((*earlier, ("by", self.name)))
            return response

        return grpc.unary_unary_rpc_method_handler(
            call, handler.request_deserializer, handler.response_serializer
        )


class OtherInterceptor(Interceptor):
    name = "given"
