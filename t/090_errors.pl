# The documented errors, to the letter, and hostile input.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new;
my ($key_id, $key) = $site->create_key;
my $responder = $site->responder_pid;
my $chat = '/api/ai/chat';

# --- 400

my %bad_body = (
	MISSING_MESSAGES => [ '{}', map { qq({"messages":$_}) } 'null', '"x"', '{}', '7', '[]' ],
	INVALID_MESSAGE_FORMAT => [
		map { qq({"messages":$_}) } '[1]', '[null]', '[{}]', '[[]]', '["test"]', '[{"role":"user"}]', '[{"content":"x"}]',
		'[{"role":1,"content":"x"}]', '[{"role":"","content":"x"}]', '[{"role":"user","content":7}]',
		'[{"role":"user","content":null}]', '[{"role":"user","content":"x"},{"role":"user"}]'
	],
	INVALID_JSON => [
		'', '{', '{"messages":[{"role":"user","content":"te', 'null', '[]', '"x"', '1', 'not json', '{"messages":[]}x',
		"\x00\x01\x02\xff\xfe", "\x1f\x8b\x08\x00" . "\x80" x 1000, qq({"messages":[{"role":"user","content":"\xff\xfe"}]}),
		'[' x 100_000, '{"a":' x 100_000, '{"messages":' . '[' x 100_000 . ']' x 100_000 . '}',
		'{"messages":[{"role":"user","content":NaN}]}', "{'messages':[]}"
	],
);
foreach my $member (
	[ INVALID_QUALITY => quality => '"best"', '"Cheap"', '1', '[]', '""', '"cheap\u0000"' ],
	[ INVALID_TEMPERATURE => temperature => '-0.1', '2.01', '"1"', 'true', '1e300', '{}' ],
	[ INVALID_MODEL => model => '1', '""', '["a"]', '"a\nb"', '"' . 'm' x 10_000 . '"' ],
	[ INVALID_STREAM => stream => '"yes"', '1', '0', '[]' ])
{
	my ($code, $name, @values) = @$member;
	$bad_body{$code} = [ map { qq({"messages":[{"role":"user","content":"x"}],"$name":$_}) } @values ];
}
my %to_the_letter = (
	MISSING_MESSAGES => $body{missing_messages},
	INVALID_MESSAGE_FORMAT => $body{invalid_message_format},
	INVALID_QUALITY => $body{invalid_quality},
);
my $failures = 0;
foreach my $code (sort keys %bad_body)
{
	foreach my $bad (@{ $bad_body{$code} })
	{
		my $shown = (length $bad > 60 ? substr($bad, 0, 60) . '...' : $bad) =~ s/[^ -~]/?/gr =~ s/#/\\#/gr;
		my $answer = $site->post($chat, $bad, "X-API-Key: $key");
		$failures++;
		is($answer->{status}, 400, "$code: $shown");
		is($answer->{json}{code}, $code, "$code: code");
		is($answer->{body}, $to_the_letter{$code}, "$code: body") if $to_the_letter{$code};
		is_deeply([ sort keys %{ $answer->{json} // {} } ], [qw(code error)], "$code: shape");
		like($answer->{headers}{'x-request-id'}, qr/^[0-9a-f]{32}$/, "$code: x-request-id");
		like($answer->{headers}{'content-type'}, qr{^application/json\b}, "$code: JSON");
	}
}

# null is "not given"
foreach my $name (qw(quality temperature model stream))
{
	is($site->chat($key, $name => undef)->{status}, 200, "$name: null is as good as absent");
}

# --- 404 and 405 ask for no key

foreach my $path ('/', '/nothing', '/api/ai/chat/', '/api/ai', '/api/ai/chat/../../nothing', '/v1/chat', '/API/AI/CHAT')
{
	my $answer = $site->get($path);
	is($answer->{status}, 404, "404 $path");
	is($answer->{json}{code}, 'NOT_FOUND', "404 $path: code");
	is_deeply([ sort keys %{ $answer->{json} // {} } ], [qw(code error)], "404 $path: shape");
	like($answer->{headers}{'x-request-id'}, qr/^[0-9a-f]{32}$/, "404 $path: x-request-id");
}
foreach my $case (
	[ GET => $chat, 'POST' ],
	[ PUT => $chat, 'POST' ],
	[ DELETE => '/v1/chat/completions', 'POST' ],
	[ POST => '/api/auth/verify', 'GET' ],
	[ POST => '/healthz', 'GET' ],
	[ BREW => $chat, 'POST' ])
{
	my ($method, $path, $allow) = @$case;
	my $answer = $site->curl($path, '--request', $method);
	is($answer->{status}, 405, "$method $path");
	like($answer->{headers}{allow}, qr/\b$allow\b/, "$method $path: Allow");
	is($answer->{json}{code}, 'METHOD_NOT_ALLOWED', "$method $path: code");
}
is($site->post("$chat?stream=0&x[]=%", user_message(), "X-API-Key: $key")->{status}, 200, 'a query string does no harm');

# --- 413 and 415

my $big = 'x' x 11_000_000;
my $answer = $site->post($chat, qq({"messages":[{"role":"user","content":"$big"}]}), "X-API-Key: $key");
is($answer->{status}, 413, '11 MB');
is($answer->{json}{code}, 'BODY_TOO_LARGE', '11 MB: code');
$failures++;
$answer = $site->post($chat, 'x' x 34_000_000, "X-API-Key: $key");
is($answer->{status}, 413, '34 MB, which nginx refuses by itself');
is($answer->{json}{code}, 'BODY_TOO_LARGE', '34 MB: the same code');
$answer = $site->post($chat, $big, 'X-API-Key: nobody');
is($answer->{status}, 401, '11 MB with a wrong key');
is($answer->{body}, $body{invalid}, '11 MB with a wrong key: body');
$answer = $site->post($chat, $big);
is($answer->{body}, $body{missing}, '11 MB without a key');
my $frame = '{"stream":false,"messages":[{"role":"user","content":""}]}';
my $most = 10_485_760 - length $frame;
$answer = $site->post($chat, $frame =~ s/""/'"' . 'y' x $most . '"'/er, "X-API-Key: $key");
is($answer->{status}, 200, '10 MiB pass');
is(length(RegPilot::Test::text_of($answer)), $most, '10 MiB come back');
is($site->post($chat, $frame =~ s/""/'"' . 'y' x ($most + 1) . '"'/er, "X-API-Key: $key")->{status}, 413, 'one byte more does not');
$failures++;

foreach my $type ('Content-Type: text/plain', 'Content-Type:', 'Content-Type: application/x-www-form-urlencoded',
	'Content-Type: application/jsonp', 'Content-Type: multipart/form-data; boundary=x')
{
	$answer = $site->curl($chat, '--header', $type, '--header', "X-API-Key: $key", '--data-binary', '{}');
	is($answer->{status}, 415, "415 $type");
	is($answer->{json}{code}, 'UNSUPPORTED_MEDIA_TYPE', "415 $type: code");
	$failures++;
}
foreach my $type ('application/json; charset=utf-8', 'Application/JSON', 'application/json;charset=UTF-8')
{
	$answer = $site->curl($chat, '--header', "Content-Type: $type", '--header', "X-API-Key: $key",
		'--data-binary', '{"messages":[{"role":"user","content":"x"}]}');
	is($answer->{status}, 200, $type);
}
$answer = $site->curl($chat, '--header', 'Content-Type: application/json', '--header', "X-API-Key: $key",
	'--header', 'Transfer-Encoding: chunked', '--data-binary', '{"messages":[{"role":"user","content":"x"}]}');
is($answer->{status}, 200, 'a body in chunks');

# --- who is asked first

is($site->curl($chat, '--header', 'X-API-Key: nobody', '--header', 'Content-Type: text/plain', '--data', 'x')->{status},
	401, 'the key before the content type');
is($site->curl('/nothing', '--header', 'X-API-Key: nobody')->{status}, 404, 'the path before the key');
is($site->post($chat, '{', 'X-API-Key: nobody')->{body}, $body{invalid}, 'the key before the body');
my ($readonly_id, $readonly) = $site->create_key(permissions => ['gateway:read']);
is($site->post($chat, '{', "X-API-Key: $readonly")->{body}, $body{forbidden}, 'the permission before the body');

# --- other than it should be, below HTTP's surface

foreach my $environment ('prod', "x' OR 1=1", 'y' x 3000, '{a,b}', '"')
{
	is($site->get('/api/auth/verify', "X-API-Key: $key", "X-RegPilot-Environment: $environment")->{status},
		200, 'an environment: ' . substr $environment, 0, 20);
}

is(waitpid($responder, POSIX::WNOHANG()), 0, 'the responder took it all');
eval { wait_until('the outcomes', sub { $site->overview($key_id, 'failed_requests') == $failures }, 10) };
is($site->overview($key_id, 'failed_requests'), $failures, 'each refused body is a failed request of the key');

done_testing();
