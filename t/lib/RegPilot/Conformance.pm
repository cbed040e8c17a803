# What RegPilot does behind any web server: one suite, through which each server goes with
# its sample configuration of fcgi/deploy/. Where servers differ, the test of each says how.
#
#   conformance('lighttpd', request_id => 0, ...);

package RegPilot::Conformance;

use strict;
use warnings;

use Exporter 'import';
use HTTP::Tiny;
use IO::Socket::INET;
use IO::Socket::UNIX;
use IPC::Run ();
use JSON::PP ();
use POSIX ();
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(conformance);

my $chat = '/api/ai/chat';
my $verify = '/api/auth/verify';
my $json = JSON::PP->new->utf8->canonical;
my $false = JSON::PP::false;
my ($site, $key_id, $key, %differs);

# conformance(web server, how it differs from the others:
#     longest_key => bytes of a key, beyond which the header is left out,
#     large_header => [ status, code ] of its answer to a header that is too large; no code: no JSON,
#     malformed => what its answer to something that is not HTTP is like,
#     paths => { path => status, ... } of paths that it judges itself,
#     plain => { path => 1, ... } where that answer is not JSON,
#     unknown_method => status of its answer to a method that it does not know,
#     request_id => 0, retry_after => 0: its own answers are without,
#     aborts_late => 1: that a client has gone is noticed when something is sent to it,
#     asks_again_after => seconds for which it leaves a responder alone that was away,
#     died => status of its answer when the responder has died over a request,
#     cut_in_order => 1: a stream that the responder did not end looks ended to HTTP,
#     reloaded => [ file of its configuration, what to replace there, by what, code that sees it
#         in an answer of the web server's own ],
#     reload_resets => 1: a reload resets connections that are new at that moment);
sub conformance
{
	(my $server, %differs) = @_;
	$site = RegPilot::Test->new(web_server => $server, env => { REGPILOT_PING_INTERVAL => 500 });
	($key_id, $key) = $site->create_key;
	my $upstream = $site->start_upstream;
	$site->add_upstream('plain', $upstream);
	$site->add_upstream('impatient', $upstream);
	$site->sql(q{UPDATE regpilot.upstream SET timeout_ms = 1000 WHERE name = 'impatient'});
	$site->add_routes([ 'hang', 'impatient', 'hang' ],
		map { [ $_, 'plain', $_ ] } qw(ok slow long-stream silent-stream dies error-500 error-400));

	foreach my $part (
		\&credentials, \&errors, \&streams, \&aborts, \&bodies, \&connections, \&odd_requests, \&parallel,
		\&watching, \&reload, \&outages)
	{
		my $start = time;
		$part->();
		note sprintf '%.1f s', time - $start;
	}
	is_deeply([ $site->logs_with($key) ], [], 'the key is in no log');
	parameters();
	is($site->end_web_server, 0, 'ends in order');
	done_testing();
}

# An answer of the responder: its request id is there.
sub answered
{
	my ($answer, $status, $what) = @_;
	is($answer->{status}, $status, $what);
	like($answer->{headers}{'x-request-id'}, qr/^[0-9a-f]{32}$/, "$what: x-request-id");
	return $answer;
}

# An answer that the web server makes itself, in RegPilot's manner.
sub answered_itself
{
	my ($answer, $status, $code, $what) = @_;
	is($answer->{status}, $status, $what);
	is($answer->{json}{code}, $code, "$what: code");
	is_deeply([ sort keys %{ $answer->{json} // {} } ], [qw(code error)], "$what: shape");
	like($answer->{headers}{'content-type'}, qr{^application/json\b}, "$what: JSON");
	is(exists $answer->{headers}{'x-request-id'}, !!($differs{request_id} // 1), "$what: x-request-id");
	return;
}

# Sends these bytes on a connection of their own, from that address, and gives all that comes back.
sub exchange
{
	my ($bytes, $from) = @_;
	my $socket = IO::Socket::INET->new(
		PeerAddr => '127.0.0.1',
		PeerPort => $site->{port},
		LocalAddr => $from // '127.0.0.1',
		Timeout => 20) // die $@;
	my $answer = '';
	print $socket $bytes;
	$socket->flush;
	eval {
		local $SIG{ALRM} = sub { die "no end after $answer" };
		alarm 60;
		1 while sysread $socket, $answer, 65536, length $answer;
		alarm 0;
	} or fail($@);
	return $answer;
}

sub carried
{
	my ($header, $credential) = @_;
	return $header =~ /authorization/i ? "$header: Bearer $credential" : "$header: $credential";
}

# --- the six headers, and long keys

sub credentials
{
	my $wrong = $key =~ s/(.)$/$1 eq 'a' ? 'b' : 'a'/er;
	foreach my $header (@credential_headers)
	{
		answered($site->get($verify, carried($header, $key)), 200, "$header opens");
		is(answered($site->get($verify, carried(lc $header, $wrong)), 401, "$header with a wrong key")->{body},
			$body{invalid}, "$header with a wrong key: body");
	}
	foreach my $i (1 .. $#credential_headers)
	{
		my ($earlier, $later) = @credential_headers[ $i - 1, $i ];
		is($site->get($verify, carried($later, $wrong), carried($earlier, $key))->{status}, 200, "$earlier before $later");
	}

	my $project = (values %{ $site->{projects} })[0];
	foreach my $length (1000, 8000, 16_000, 39_000)
	{
		my $long = 'k' x $length;
		$site->sql("SELECT regpilot.import_key('$project', 'long $length', sha256('$long'))");
		my $passes = $length <= ($differs{longest_key} // 39_000);
		my $answer = $site->get($verify, "X-API-Key: $long");
		is($answer->{status}, $passes ? 200 : 401, "a key of $length bytes");
		is($answer->{body}, $body{missing}, "a key of $length bytes: left out") if !$passes;
	}
	my $answer = $site->get($verify, 'X-API-Key: ' . 'k' x 120_000);
	my ($status, $code) = @{ $differs{large_header} // [ 400, 'BAD_REQUEST' ] };
	if ($code)
	{
		answered_itself($answer, $status, $code, 'a header that is too large');
	}
	else
	{
		is($answer->{status}, $status, 'a header that is too large');
	}
	return;
}

# --- errors

sub errors
{
	foreach my $case (
		[ 401, 'missing', $site->get($verify) ],
		[ 401, 'invalid', $site->get($verify, 'X-API-Key: nobody') ],
		[ 400, 'missing_messages', $site->post($chat, '{}', "X-API-Key: $key") ],
		[ 400, 'invalid_message_format', $site->post($chat, '{"messages":[1]}', "X-API-Key: $key") ],
		[ 400, 'invalid_quality', $site->chat($key, quality => 'best') ])
	{
		my ($status, $name, $answer) = @$case;
		is(answered($answer, $status, $name)->{body}, $body{$name}, "$name: body");
		like($answer->{headers}{'content-type'}, qr{^application/json\b}, "$name: JSON");
	}
	my ($revoked_id, $revoked) = $site->create_key;
	$site->sql("SELECT regpilot.revoke_key('$revoked_id')");
	is(answered($site->chat($revoked), 401, 'revoked')->{body}, $body{revoked}, 'revoked: body');
	my ($reader_id, $reader) = $site->create_key(permissions => ['gateway:read']);
	is(answered($site->chat($reader), 403, 'forbidden')->{body}, $body{forbidden}, 'forbidden: body');
	is($site->get($verify)->{headers}{'www-authenticate'}, 'Bearer', '401: WWW-Authenticate');

	my ($limited_id, $limited) = $site->create_key(requests_per_minute => 1);
	my $answer = answered($site->get($verify, "X-API-Key: $limited"), 200, 'within the limit');
	is($answer->{headers}{'x-ratelimit-remaining'}, 0, 'within the limit: x-ratelimit-remaining');
	$answer = answered($site->get($verify, "X-API-Key: $limited"), 429, 'rate limited');
	like($answer->{body}, qr/^\{"error":"Rate limit exceeded","retry_after":(\d+),"limit":1,"window":"1 minute"\}$/,
		'rate limited: body');
	is($answer->{headers}{'retry-after'}, $answer->{json}{retry_after}, 'rate limited: Retry-After');

	foreach my $case (
		[ 404, 'NOT_FOUND', $site->get('/nothing') ],
		[ 405, 'METHOD_NOT_ALLOWED', $site->get($chat) ],
		[ 415, 'UNSUPPORTED_MEDIA_TYPE', $site->curl($chat, '--data', 'x', '--header', "X-API-Key: $key") ],
		[ 400, 'INVALID_JSON', $site->post($chat, '{', "X-API-Key: $key") ],
		[ 502, 'UPSTREAM_FAILED', $site->chat($key, model => 'error-500') ],
		[ 504, 'UPSTREAM_TIMEOUT', $site->chat($key, model => 'hang', stream => $false) ])
	{
		my ($status, $code, $answer) = @$case;
		is(answered($answer, $status, $code)->{json}{code}, $code, "$code: code");
	}
	is(answered($site->chat($key, model => 'error-400', stream => $false), 400, "an upstream's error")->{json}{error}{message},
		'this model takes no pictures', "an upstream's error: body");
	return;
}

# --- streams

# Whether the pieces came as they were made: the upstream says a word every 0.3 s.
sub streams
{
	my $stream = $site->stream($key, model => 'ok');
	answered($stream, 200, 'a stream');
	like($stream->{headers}{'content-type'}, qr{^text/event-stream\b}, 'a stream: content type');
	is($stream->{headers}{'x-regpilot-model'}, 'plain/ok', 'a stream: x-regpilot-model');
	is(text_of($stream), 'one two three four five ', 'a stream: whole');
	is((events($stream->{body}))[-1], '[DONE]', 'a stream: [DONE]');
	my %came;
	foreach my $piece (@{ $stream->{pieces} })
	{
		$came{$1} //= $piece->[0] while $piece->[1] =~ /(one|two|three|four|five)/g;
	}
	cmp_ok($came{five} - $came{one}, '>=', 0.9, 'a stream: words come as they are said');

	my $broken = $site->chat($key, model => 'dies');
	is($broken->{exit}, 0, 'a stream that breaks off: ends in order');
	my @events = events($broken->{body});
	ok(ref $events[-1] && $events[-1]{error}, 'a stream that breaks off: ends in an error event');
	return;
}

# --- clients that go away

sub clients_gone
{
	return scalar grep { $_->{event} eq 'client gone' && $_->{model} eq $_[0] } json_file($site->upstream_requests);
}

sub aborts
{
	foreach my $model (qw(long-stream slow silent-stream))
	{
		my $start = time;
		my $answer = $site->curl($chat, '--max-time', '0.7', '--header', "X-API-Key: $key", '--json',
			$json->encode(user_message(model => $model, $model eq 'slow' ? (stream => $false) : ())));
		is($answer->{exit}, 28, "$model: the client gives up");
		if ($model eq 'slow' && $differs{aborts_late})
		{
			sleep 1;
			is(clients_gone($model), 0, "$model: the upstream is not told");
			next;
		}
		eval { wait_until('the upstream to see it', sub { clients_gone($model) }, 20) };
		is(clients_gone($model), 1, "$model: the upstream call ends");
		note sprintf '%s after %.1f s', $model, time - $start;
	}
	return;
}

# --- bodies

# A request of that many bytes, which is answered in few: that its quality is none.
sub content
{
	my ($length) = @_;
	my $frame = '{"quality":"none","messages":[{"role":"user","content":""}]}';
	return $frame =~ s/""/'"' . 'y' x ($length - length $frame) . '"'/er;
}

sub bodies
{
	my $most = 10 * 1024 * 1024;
	foreach my $length (100, 100_000, $most, $most + 1)
	{
		# also in chunks, whose sum is not known before the end
		foreach my $coding ('X-Coding: none', 'Transfer-Encoding: chunked')
		{
			my $answer = $site->post($chat, content($length), "X-API-Key: $key", $coding);
			my ($status, $code) = $length > $most ? (413, 'BODY_TOO_LARGE') : (400, 'INVALID_QUALITY');
			is(answered($answer, $status, "$length bytes, $coding")->{json}{code}, $code, "$length bytes, $coding: code");
		}
	}
	is(answered($site->post($chat, content(20_000_000), 'X-API-Key: nobody'), 401, '20 MB with a wrong key')->{body},
		$body{invalid}, '20 MB with a wrong key: body');
	answered_itself($site->post($chat, 'x' x 34_000_000, "X-API-Key: $key"), 413, 'BODY_TOO_LARGE', '34 MB');

	# a large answer
	append_to_file("$site->{dir}/echo", content($most) =~ s/"quality":"none"/"stream":false/r);
	my ($output, $errors) = ('', '');
	IPC::Run::run(
		[
			'curl', '--silent', '--max-time', 60, '--header', "X-API-Key: $key", '--json', "\@$site->{dir}/echo",
			'--output', '/dev/null', '--write-out', '%{http_code} %{size_download}', $site->url . $chat
		],
		'<', \undef, '>', \$output, '2>', \$errors);
	my ($status, $size) = split / /, $output;
	is($status, 200, '10 MiB pass');
	cmp_ok($size, '>', $most, '10 MiB come back');

	my $chunk = sub { sprintf "%x\r\n%s\r\n", length $_[0], $_[0] };
	like(
		exchange(
			"POST $chat HTTP/1.1\r\nHost: x\r\nX-API-Key: $key\r\nContent-Type: application/json\r\nConnection: close\r\n"
			  . "Transfer-Encoding: chunked\r\n\r\n"
			  . join('', map { $chunk->($_) } split //, content(100)) . "0\r\n\r\n"),
		qr{^HTTP/1\.1 400 .*"INVALID_QUALITY"}s,
		'a chunk a byte');

	# The client waits for the word to send its body.
	IPC::Run::run(
		[
			'curl', '--silent', '--include', '--max-time', 60, '--header', 'Expect: 100-continue', '--header',
			"X-API-Key: $key", '--expect100-timeout', 50, '--json', content(1000), $site->url . $chat
		],
		'<', \undef, '>', \$output, '2>', \$errors);
	like($output, qr{^HTTP/1\.1 100 .*^HTTP/1\.1 400 }ms, 'Expect: 100-continue');
	return;
}

# --- connections

sub connections
{
	my ($output, $errors) = ('', '');
	IPC::Run::run(
		[
			'curl', '--silent', '--max-time', 60, '--header', "X-API-Key: $key", '--output', '/dev/null',
			'--write-out', '%{http_code} %{num_connects}\n', $site->url . "$verify?[1-300]"
		],
		'<', \undef, '>', \$output, '2>', \$errors);
	my %count;
	$count{$_}++ foreach split /\n/, $output;
	is_deeply(\%count, { '200 1' => 1, '200 0' => 299 }, '300 requests on a connection');

	my $request = "GET $verify HTTP/1.1\r\nHost: x\r\nX-API-Key: $key\r\n";
	my $answers = () = exchange("$request\r\n" x 9 . "${request}Connection: close\r\n\r\n") =~ m{HTTP/1\.1 200 }g;
	is($answers, 10, '10 requests sent at once');
	like(exchange("GET $verify HTTP/1.0\r\nX-API-Key: $key\r\n\r\n"), qr{^HTTP/1\.[01] 200 .*"valid":true}s, 'HTTP/1.0');
	return;
}

# --- odd requests

sub odd_requests
{
	my %status = (
		'/' => 404, '//' => 404, '/%61pi/auth/verify' => 404, '//api/auth/verify' => 404, '/api//auth/verify' => 404,
		'/api/auth/verify/' => 404, '/api/./auth/verify' => 404, '/x/../api/auth/verify' => 404,
		'/api/auth/verify%00' => 404, '/api/auth/verify%2F' => 404, '/api/auth%2Fverify' => 404, '/API/auth/verify' => 404,
		'/api/auth/verify;x' => 404, '/%' => 404, '/%zz' => 404, '/a%0d%0ab' => 404, '/.htaccess' => 404,
		'/regpilot.php' => 404, '/*' => 404, "/\xc3\xa4" => 404, '/' . 'p' x 4000 => 404, '/../../../etc/passwd' => 404,
		'/api/auth/verify?' => 200, '/api/auth/verify?a=%&b=/../&c=%00' => 200, '/api/auth/verify?' . 'q' x 4000 => 200,
		%{ $differs{paths} // {} });
	foreach my $path (sort keys %status)
	{
		my $shown = substr $path =~ s/[^ -~]/?/gr, 0, 50;
		my $answer = $site->curl($path, '--path-as-is', '--globoff', '--header', "X-API-Key: $key");
		is($answer->{status}, $status{$path}, "path $shown");
		ok($answer->{json}, "path $shown: in JSON") if !$differs{plain}{$path};
	}
	like(exchange("GET http://x$verify HTTP/1.1\r\nHost: x\r\nX-API-Key: $key\r\nConnection: close\r\n\r\n"),
		qr{^HTTP/1\.1 200 }, 'a whole URL in the request line');
	like(exchange("\x16\x03\x01\x02\x00\x01" x 10 . "\r\n\r\n"), $differs{malformed} // qr{^HTTP/1\.[01] 400 .*"code":"BAD_REQUEST"}s, 'no HTTP');

	my $answer = answered($site->curl($verify, '--head', '--header', "X-API-Key: $key"), 405, 'HEAD');
	is($answer->{body}, '', 'HEAD: no body');
	foreach my $method (qw(OPTIONS PUT DELETE BREW))
	{
		$answer = $site->curl($verify, '--request', $method, '--header', "X-API-Key: $key");
		is($answer->{status}, $method eq 'BREW' ? $differs{unknown_method} // 405 : 405, $method);
	}
	return;
}

# --- many at once

sub parallel
{
	my $seen = $site->in_parallel(
		64,
		sub {
			my ($client) = @_;
			my $http = HTTP::Tiny->new(timeout => 60);
			my %count;
			foreach (1 .. 10)
			{
				my $answer = $http->get($site->url . $verify, { headers => { 'X-API-Key' => $key } });
				$count{ $answer->{status} }++;
				$count{'with its key'}++ if $answer->{content} =~ /"key_id":"$key_id"/;
			}
			$count{ $site->stream($key)->{body} =~ /\[DONE\]/ ? 'whole' : 'cut' }++;
			return \%count;
		});
	is_deeply($seen, { 200 => 640, 'with its key' => 640, whole => 64 }, '64 clients at once');
	return;
}

# The web server takes up a changed configuration while clients call.
sub reload
{
	my ($file, $old, $new, $is_new) = @{ $differs{reloaded} };
	my $clients = 6;
	my $streams = 4;
	my $seen = $site->in_parallel(
		$clients + $streams + 1,
		sub {
			my ($client) = @_;
			if ($client < $streams)
			{
				my $stream = $site->stream($key, model => 'long-stream');
				return { $stream->{body} =~ /word19.*\[DONE\]/s ? 'whole' : "cut: $stream->{status}" => 1 };
			}
			my $end = time + 4;
			if ($client == $clients + $streams)
			{
				sleep 0.7;
				append_to_file($site->{dir} . "/$file.new", slurp_file("$site->{dir}/$file") =~ s/\Q$old\E/$new/gr);
				rename "$site->{dir}/$file.new", "$site->{dir}/$file" or die $!;
				$site->reload_web_server;
				return { changed => 1 * wait_until('the new configuration', sub {
					$is_new->($site->curl('/metrics', '--interface', '127.0.0.2')) }) };
			}
			my %count;
			while (time < $end)
			{
				my $answer = HTTP::Tiny->new(timeout => 30, keep_alive => 0)
				  ->get($site->url . $verify, { headers => { 'X-API-Key' => $key } });
				my $lost = $answer->{status} == 599 && "no answer: $answer->{content}";
				$count{ $lost ? $differs{reload_resets} ? 'no answer' : $lost : $answer->{status} }++;
			}
			return \%count;
		});
	cmp_ok(delete $seen->{200} // 0, '>', 20, 'a reload under load: calls are answered');
	cmp_ok(delete $seen->{'no answer'} // 0, '<=', 2 * $clients, 'a reload under load: but a few') if $differs{reload_resets};
	is_deeply($seen, { changed => 1, whole => $streams }, 'a reload under load: nothing is lost or cut');
	return;
}

# --- for who watches

sub watching
{
	foreach my $path ('/metrics', '/readyz')
	{
		answered_itself($site->curl($path, '--interface', '127.0.0.2'), 403, 'FORBIDDEN', "$path from elsewhere");
		isnt($site->get($path)->{status}, 403, "$path from here");
		foreach my $odd ("/$path", "$path?x", $path =~ s/e/%65/r, "/x/..$path")
		{
			my $answer = $site->curl($odd, '--interface', '127.0.0.2', '--path-as-is');
			like($answer->{status}, qr/^40[34]$/, "$odd from elsewhere");
		}
		like(exchange("GET http://x$path HTTP/1.0\r\nHost: x\r\n\r\n", '127.0.0.2'), qr{^HTTP/1\.[01] 403 },
			"$path as a whole URL from elsewhere");
	}
	is($site->curl('/healthz', '--interface', '127.0.0.2')->{status}, 200, '/healthz from elsewhere');
	return;
}

# --- outages

sub upstream_calls
{
	return scalar grep { $_->{event} eq 'request' && $_->{model} eq $_[0] } json_file($site->upstream_requests);
}

# A server's processes may each leave the responder alone for some time after it was away.
sub responder_is_back
{
	$site->start_responder;
	sleep $differs{asks_again_after} if $differs{asks_again_after};
	is($site->get('/healthz')->{status}, 200, 'when the responder listens again, it is asked');
	$site->wait_for_verdicts;
	return;
}

sub outages
{
	$site->node->stop('immediate');
	foreach (1 .. 2)
	{
		my $answer = answered($site->chat($key), 503, 'no database');
		is($answer->{json}{code}, 'DATABASE_UNAVAILABLE', 'no database: code');
		like($answer->{headers}{'retry-after'}, qr/^[1-9]\d*$/, 'no database: Retry-After');
	}
	$site->node->start;
	wait_until('verdicts', sub { $site->get($verify, "X-API-Key: $key")->{status} == 200 });

	$site->end_responder('TERM');
	foreach (1 .. 2)
	{
		my $answer = $site->chat($key);
		answered_itself($answer, 503, 'GATEWAY_UNAVAILABLE', 'no responder');
		is($answer->{headers}{'retry-after'}, $differs{retry_after} // 1 ? 1 : undef, 'no responder: Retry-After');
	}
	responder_is_back();

	# It dies with a request in its hands: one that has no answer yet, or a stream.
	foreach my $model (qw(slow long-stream))
	{
		my $calls = upstream_calls($model);
		my $killer = fork // die "fork: $!";
		if ($killer == 0)
		{
			eval { wait_until('the call', sub { upstream_calls($model) > $calls }, 20) };
			sleep 0.5;
			kill 'KILL', $site->responder_pid;
			POSIX::_exit(0);
		}
		my $answer = $site->chat($key, model => $model, $model eq 'slow' ? (stream => $false) : ());
		waitpid $killer, 0;
		if ($model eq 'slow')
		{
			answered_itself($answer, $differs{died} // 503, 'GATEWAY_UNAVAILABLE', 'the responder dies');
		}
		else
		{
			like($answer->{body}, qr/"content": "word0 "/, 'the responder dies in the midst of a stream');
			unlike($answer->{body}, qr/\[DONE\]|word19/, 'the stream is not whole');
			is($answer->{exit}, $differs{cut_in_order} ? 0 : 18, 'how the client sees that');
		}
		$site->end_responder('KILL');
		responder_is_back();
	}
	return;
}

# --- what the responder is told

# Answers FastCGI requests on that socket with their parameters, in JSON, until it is killed.
# (Sections 3.3 and 5 of the FastCGI specification.)
sub serve_parameters
{
	my ($listener) = @_;
	while (my $connection = $listener->accept)
	{
		my ($keep, $params, $length) = (0, '', 0);
		while (read($connection, my $header, 8) == 8)
		{
			my ($version, $type, $id, $size, $padding) = unpack 'CCnnC', $header;
			read $connection, my $content, $size + $padding;
			$content = substr $content, 0, $size;
			$keep = unpack('x2 C', $content) & 1 if $type == 1;
			$params .= $content if $type == 4;
			$length += $size if $type == 5;
			next if $type != 5 || $size > 0;

			my %param;
			my $number = sub {
				my $short = unpack 'C', $params;
				return unpack 'C', substr $params, 0, 1, '' if $short < 128;
				return 0x7FFFFFFF & unpack 'N', substr $params, 0, 4, '';
			};
			while (length $params)
			{
				my ($name, $value) = ($number->(), $number->());
				my $field = substr $params, 0, $name, '';
				$param{$field} = substr $params, 0, $value, '';
			}
			my $answer = "Content-Type: application/json\r\nx-request-id: x\r\n\r\n"
			  . $json->encode({ param => \%param, length => $length });
			print $connection pack('CCnnxx', 1, 6, $id, length $answer), $answer, pack('CCnnxx', 1, 6, $id, 0),
			  pack('CCnnxx Nx4', 1, 3, $id, 8, 0);
			$connection->flush;
			$length = 0;
			last if !$keep;
		}
	}
	return;
}

sub parameters
{
	my $path = "$site->{dir}/parameters.sock";
	my $listener = IO::Socket::UNIX->new(Local => $path, Listen => 16) // die "$path: $!";
	my $pid = fork // die "fork: $!";
	if ($pid == 0)
	{
		serve_parameters($listener);
		POSIX::_exit(0);
	}
	$site->end_web_server;
	$site->start_web_server($path);

	my $odd = '/a//b/../%2F%41?x=%zz&y';
	my $answer = $site->curl(
		$odd, '--path-as-is', '--globoff', '--json', 'four',
		map { ('--header', $_) } 'Proxy: http://evil.example', map { carried($_, $_) } @credential_headers);
	my $param = $answer->{json}{param} // {};
	is($param->{REQUEST_URI}, $differs{uri} // $odd, 'REQUEST_URI is what the client sent');
	is($param->{REQUEST_METHOD}, 'POST', 'REQUEST_METHOD');
	is($param->{CONTENT_TYPE}, 'application/json', 'CONTENT_TYPE');
	is($param->{CONTENT_LENGTH}, 4, 'CONTENT_LENGTH');
	is($answer->{json}{length}, 4, 'and as much comes');
	is($param->{REMOTE_ADDR}, '127.0.0.1', 'REMOTE_ADDR');
	is($param->{HTTP_PROXY} // '', '', "a client's Proxy header is no HTTP_PROXY");
	foreach my $header (@credential_headers)
	{
		is($param->{ 'HTTP_' . uc $header =~ tr/-/_/r }, (split / /, carried($header, $header), 2)[1], $header);
	}
	kill 'KILL', $pid;
	waitpid $pid, 0;
	return;
}

1;
